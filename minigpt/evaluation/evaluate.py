"""How good a model is, and what its numbers mean: baselines, and what it gets right."""

import math
import unicodedata
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from minigpt.data.batches import Batch
from minigpt.data.tensors import to_tensors
from minigpt.data.token_files import SplitInfo
from minigpt.model.loss import bits_per, cross_entropy
from minigpt.tokenizer import PAD, Tokenizer

CLASSES = [
    *[
        "lowercase",
        "uppercase",
        "other letter",
        "digit",
        "space",
        "line break",
        "punctuation",
        "control",
    ],
    *["part of a character", "special token"],
]


@torch.inference_mode()
def predict(model: Callable[[Tensor], Tensor], batches: Iterable[Batch]) -> pd.DataFrame:
    """What a model says of every target, one row each: `previous`, `target`, `predicted` (ids), `loss` (nats).

    `model`: from ids (B, T) to logits (B, T, V), on the CPU.
    """
    parts = []
    for batch in batches:
        input_ids, targets = to_tensors(batch, torch.device("cpu"))
        logits = model(input_ids)  # (B, T, V)
        losses = cross_entropy(logits, targets, reduction="none")  # (B·T,)
        columns = {
            "previous": input_ids,
            "target": targets,
            "predicted": logits.argmax(-1),
            "loss": losses.double(),
        }
        real = targets.flatten() != PAD
        parts.append(
            pd.DataFrame({name: values.flatten()[real].numpy() for name, values in columns.items()})
        )
    return pd.concat(parts, ignore_index=True)


def summarize(predictions: pd.DataFrame, split: SplitInfo) -> dict[str, float]:
    """Loss (nats a token), perplexity, bits a character and a byte, share of tokens guessed right."""
    loss = float(
        predictions["loss"].to_numpy().mean()
    )  # pandas would leave NaN out, and a broken model look sound
    return {
        "loss": loss,
        "perplexity": math.exp(loss),
        "bits_per_char": bits_per(split.characters, loss, len(predictions)),
        "bits_per_byte": bits_per(split.bytes, loss, len(predictions)),
        "accuracy": float((predictions["target"] == predictions["predicted"]).mean()),
    }


def baselines(predictions: pd.DataFrame, vocab_size: int) -> dict[str, float]:
    """Losses (nats a token) of three guessers that no model should fail to beat, for the same targets.

    uniform: every token is equally likely. unigram: knows how often each token occurs among the targets.
    bigram: knows how often each follows each. The last two are entropies of the targets themselves, so
    they are the best that any unigram or bigram model could do on them.
    """
    return {
        "uniform": math.log(vocab_size),
        "unigram": _entropy(predictions["target"]),
        # H(target | previous) = H(previous, target) - H(previous)
        "bigram": _entropy(predictions[["previous", "target"]]) - _entropy(predictions["previous"]),
    }


def _entropy(values: pd.Series | pd.DataFrame) -> float:
    shares = values.value_counts(normalize=True).to_numpy()
    return float(-(shares * np.log(shares)).sum())


def accuracy_by_class(predictions: pd.DataFrame, tokenizer: Tokenizer) -> pd.DataFrame:
    """How often the next token is guessed right, by the kind of character that it is or begins with."""
    codes = np.array(
        [CLASSES.index(piece_class(piece)) for piece in tokenizer.token_strings]
    )  # of each id
    table = pd.DataFrame(
        {
            "class": pd.Categorical.from_codes(codes[predictions["target"]], CLASSES),
            "right": predictions["target"] == predictions["predicted"],
            "loss": predictions["loss"],
        }
    )
    groups = table.groupby("class", observed=True)
    return (
        groups.agg(count=("right", "size"), accuracy=("right", "mean"), loss=("loss", "mean"))
        .round(4)
        .reset_index()
    )


def mistakes(predictions: pd.DataFrame, tokenizer: Tokenizer, most: int = 30) -> pd.DataFrame:
    """The commonest wrong guesses, such as `'e' → 'a'`: how many, and as a share of where that token was expected."""
    expected = predictions["target"].value_counts()
    wrong = predictions[predictions["target"] != predictions["predicted"]]
    table = wrong.value_counts(["target", "predicted"]).head(most).reset_index()
    names = [repr(piece) if piece else "special token" for piece in tokenizer.token_strings]
    label = [
        f"{names[target]} → {names[guess]}"
        for target, guess in table[["target", "predicted"]].to_numpy()
    ]
    share = (table["count"] / table["target"].map(expected)).round(4)
    return pd.DataFrame({"mistake": label, "count": table["count"], "share": share})


def piece_class(piece: str) -> str:
    """One of CLASSES, by the first character of a token that is not a space; see `Tokenizer.token_strings`."""
    if not piece:
        return "special token"
    return character_class((piece.lstrip(" ") or " ")[0])


def character_class(character: str) -> str:
    """One of CLASSES."""
    if character == "\n":
        return "line break"
    if character.isspace():
        return "space"
    if character.isdigit():
        return "digit"
    if character.islower():
        return "lowercase"
    if character.isupper():
        return "uppercase"
    category = unicodedata.category(character)
    if category == "Cs":  # a lone surrogate
        return "part of a character"
    # the first letter: L letter, M mark (accents, vowel signs), C control
    kinds = {"L": "other letter", "M": "other letter", "C": "control"}
    return kinds.get(category[0], "punctuation")
