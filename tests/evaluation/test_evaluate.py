import math

import pandas as pd
import pytest
import torch
from conftest import build_model, mean_loss
from hypothesis import given
from hypothesis import strategies as st

from minigpt.data.batches import Batches
from minigpt.data.token_files import SplitInfo
from minigpt.evaluation.baselines import baselines
from minigpt.evaluation.error_analysis import (
    accuracy_by_class,
    mistakes,
    token_class,
)
from minigpt.evaluation.evaluate import predict, summarize
from minigpt.tokenizer import BPETokenizer, CharTokenizer


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_every_target_is_predicted_once(sentences, tokenizer, layout):
    ids = torch.tensor(
        [token for text in sentences[:9] for token in tokenizer.encode(text)]
    ).numpy()
    batches = Batches(ids, layout, 4, 16)
    model = build_model(40, d_model=16, num_heads=2, num_layers=1, d_ff=32, max_seq_len=16).eval()
    predictions = predict(model, batches)
    assert len(predictions) == batches.num_targets
    assert predictions["loss"].mean() == pytest.approx(mean_loss(model, batches), abs=1e-6)
    pairs = list(zip(predictions["previous"], predictions["target"], strict=True))
    assert set(pairs) <= set(zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True))


def test_summary_matches_hand_computed_values():
    predictions = pd.DataFrame(
        {"target": [4, 5, 6, 3], "predicted": [4, 5, 5, 5], "loss": [math.log(2)] * 4}
    )
    found = summarize(
        predictions, SplitInfo(documents=1, tokens=5, characters=3, bytes=6, unknown=0, sha256="")
    )
    assert found == pytest.approx(
        {
            "loss": math.log(2),
            "perplexity": 2,
            "bits_per_char": 4 / 3,
            "bits_per_byte": 4 / 6,
            "accuracy": 0.5,
        }
    )


def test_baselines_match_hand_computed_losses():
    # "abababab": one bit per token for the unigram model, zero for the bigram model
    predictions = pd.DataFrame({"previous": [4, 5] * 4, "target": [5, 4] * 4})
    assert baselines(predictions, 8) == pytest.approx(
        {"uniform": math.log(8), "unigram": math.log(2), "bigram": 0}
    )


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_more_context_never_raises_the_loss(pairs):
    found = baselines(pd.DataFrame(pairs, columns=["previous", "target"]), 6)
    assert found["uniform"] + 1e-9 >= found["unigram"] >= found["bigram"] - 1e-9 >= -2e-9


def test_accuracy_is_grouped_by_character_class():
    tokenizer = CharTokenizer("aB7 .\n")
    targets = tokenizer.encode("aaB7 .\n")[1:]
    predicted = tokenizer.encode("aBB7  \n")[1:]
    table = accuracy_by_class(
        pd.DataFrame({"target": targets, "predicted": predicted, "loss": 1.0}), tokenizer
    )
    found = table.set_index("class")["accuracy"].to_dict()
    assert found == {
        "lowercase": 0.5,
        "uppercase": 1,
        "digit": 1,
        "space": 1,
        "line break": 1,
        "punctuation": 0,
        "special token": 1,
    }


def test_unicode_characters_have_the_expected_class():
    assert [token_class(character) for character in "éÉ中\u0bbe\u200b…€\t"] == [
        *[
            "lowercase",
            "uppercase",
            "other letter",
            "other letter",
            "control",
            "punctuation",
            "punctuation",
            "space",
        ]
    ]


def test_subword_class_ignores_leading_spaces():
    found = {
        " the": "lowercase",
        "The": "uppercase",
        "  ": "space",
        " \n": "line break",
        ".\n": "punctuation",
    }
    found |= {
        "": "special token",
        " \udcf0\udc9f": "part of a character",
        "a\udcc3": "lowercase",
        "1st": "digit",
    }
    assert {string: token_class(string) for string in found} == found


def test_accuracy_is_grouped_by_subword_class():
    tokenizer = BPETokenizer()
    targets = tokenizer.encode("né")[1:]
    table = accuracy_by_class(
        pd.DataFrame({"target": targets, "predicted": targets, "loss": 1.0}), tokenizer
    )
    assert table.set_index("class")["count"].to_dict() == {
        "lowercase": 1,
        "part of a character": 2,
        "special token": 1,
    }


def test_mistake_share_is_relative_to_its_target(tokenizer):
    e, t, space = (tokenizer.encode(text, add_special_tokens=False)[0] for text in "et ")
    predictions = pd.DataFrame({"target": [e, e, e, t, 3], "predicted": [space, space, e, e, t]})
    table = mistakes(predictions, tokenizer, limit=2)
    assert table.to_dict("records")[0] == {"mistake": "'e' → ' '", "count": 2, "share": 0.6667}
    assert len(table) == 2
