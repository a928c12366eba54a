import math
from collections import Counter, defaultdict

import numpy as np
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
from minigpt.tokenizer import BOS, EOS, PAD, BPETokenizer, CharTokenizer


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_every_target_is_predicted_once(sentences, tokenizer, layout):
    ids = torch.tensor(
        [token for text in sentences[:9] for token in tokenizer.encode(text)]
    ).numpy()
    batches = Batches(ids, layout, 4, 16)
    model = build_model(40, d_model=16, num_heads=2, num_layers=1, d_ff=32, max_seq_len=16).eval()
    predictions = predict(model, batches)
    assert len(predictions) == batches.num_targets == (ids != BOS).sum()
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
    document = np.array([BOS, 4, 5, 4, 5, EOS])
    found = baselines(document, document, vocab_size=6)
    # counts plus one: <eos> 2, a 3, b 3, of 5 + 6 in all
    unigram = np.array([3, 3, 3, 3, 2]) / 11
    # contexts <bos>, a, b, a, b; `<bos>` and `a` are followed by one token, `b` by two
    bigram = (np.array([1, 2, 1, 2, 1]) + np.array([1, 1, 2, 1, 2]) * unigram) / [2, 3, 4, 3, 4]
    assert found["uniform"] == pytest.approx(math.log(6))
    assert found["unigram"] == pytest.approx(-np.log(unigram).mean())
    assert found["bigram"] == pytest.approx(-np.log(bigram).mean())


def slow_five_gram(train: list[list[int]], documents: list[list[int]], vocab_size: int) -> float:
    """Return the loss of the 5-gram baseline, by the formula in its docstring."""
    counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for document in train:
        for i in range(1, len(document)):
            for n in range(5):
                counts[tuple(([PAD] * n + document[:i])[i : n + i])][document[i]] += 1

    def probability(context: tuple[int, ...], token: int) -> float:
        count = counts[context]
        if not context:
            return (count[token] + 1) / (count.total() + vocab_size)
        shorter = probability(context[1:], token)
        total = count.total() + len(count)
        return (count[token] + len(count) * shorter) / total if total else shorter

    losses = [
        -math.log(probability(tuple(([PAD] * 4 + document[:i])[i : 4 + i]), document[i]))
        for document in documents
        for i in range(1, len(document))
    ]
    return sum(losses) / len(losses)


corpora = st.lists(st.lists(st.integers(4, 6), max_size=8), min_size=1, max_size=5)


@given(corpora, corpora)
def test_5_gram_baseline_follows_its_formula(train, documents):
    train, documents = ([[BOS, *text, EOS] for text in texts] for texts in (train, documents))
    found = baselines(np.concatenate(train), np.concatenate(documents), vocab_size=7)
    assert found["5-gram"] == pytest.approx(slow_five_gram(train, documents, 7))


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
