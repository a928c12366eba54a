"""How good a model is, and what its numbers mean: baselines, and what it gets right."""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from minigpt.dataset import Batch, SplitInfo
from minigpt.loss import bits_per, cross_entropy, to_tensors
from minigpt.model import MiniGPT
from minigpt.tokenizer import PAD, SPECIAL_TOKENS, CharTokenizer

CLASSES = ["lowercase", "uppercase", "digit", "space", "line break", "punctuation", "other", "special token"]


@torch.inference_mode()
def predict(model: MiniGPT, batches: Iterable[Batch]) -> pd.DataFrame:
    """What the model says of every target, one row each: `target`, `predicted` (ids), `loss` (nats)."""
    device = next(model.parameters()).device
    parts = []
    for batch in batches:
        input_ids, targets = to_tensors(batch, device)
        logits = model(input_ids)  # (B, T, V)
        losses = cross_entropy(logits, targets, reduction="none")  # (B·T,)
        parts.append(_columns(targets.flatten(), logits.argmax(-1).flatten(), losses))
    return pd.concat(parts, ignore_index=True)


def _columns(targets: Tensor, predicted: Tensor, losses: Tensor) -> pd.DataFrame:
    real = (targets != PAD).cpu()
    columns = {"target": targets, "predicted": predicted, "loss": losses.double()}
    return pd.DataFrame({name: tensor.cpu()[real].numpy() for name, tensor in columns.items()})


def summarize(predictions: pd.DataFrame, split: SplitInfo) -> dict[str, float]:
    """Loss (nats a token), perplexity, bits a character and a byte, share of tokens guessed right."""
    loss = float(predictions["loss"].mean())
    return {
        "loss": loss,
        "perplexity": math.exp(loss),
        "bits_per_char": bits_per(split.characters, loss, len(predictions)),
        "bits_per_byte": bits_per(split.bytes, loss, len(predictions)),
        "accuracy": float((predictions["target"] == predictions["predicted"]).mean()),
    }


def baselines(ids: np.ndarray, vocab_size: int) -> dict[str, float]:
    """Losses (nats a token) of three guessers that no model should fail to beat, on the same split.

    uniform: every token is equally likely. unigram: knows how often each token occurs in this split.
    bigram: knows how often each follows each. The last two are entropies of the split itself, so they
    are the best that any unigram or bigram model could do on it.
    """
    singles = np.bincount(ids, minlength=vocab_size)
    pairs = np.bincount(ids[:-1].astype(np.int64) * vocab_size + ids[1:], minlength=vocab_size**2)
    firsts = pairs.reshape(vocab_size, vocab_size).sum(axis=1)
    return {
        "uniform": math.log(vocab_size),
        "unigram": _entropy(singles),
        # H(next | previous) = H(previous, next) - H(previous)
        "bigram": _entropy(pairs) - _entropy(firsts),
    }


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def accuracy_by_class(predictions: pd.DataFrame, tokenizer: CharTokenizer) -> pd.DataFrame:
    """How often the next token is guessed right, by the kind of character that it is."""
    kinds = ["special token"] * len(SPECIAL_TOKENS) + [character_class(c) for c in tokenizer.characters]
    codes = np.array([CLASSES.index(kind) for kind in kinds])  # of each id
    table = pd.DataFrame(
        {
            "class": pd.Categorical.from_codes(codes[predictions["target"]], CLASSES),
            "right": predictions["target"] == predictions["predicted"],
            "loss": predictions["loss"],
        }
    )
    groups = table.groupby("class", observed=True)
    return groups.agg(count=("right", "size"), accuracy=("right", "mean"), loss=("loss", "mean")).round(4).reset_index()


def character_class(character: str) -> str:
    """One of CLASSES."""
    if character == "\n":
        return "line break"
    if character.isspace():
        return "space"
    if character.isdigit():
        return "digit"
    if character.isalpha():
        return "uppercase" if character.isupper() else "lowercase"
    return "punctuation" if character.isprintable() else "other"
