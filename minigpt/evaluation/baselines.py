"""Losses of simple models, to compare a trained model with."""

import math

import numpy as np
import pandas as pd


def baselines(predictions: pd.DataFrame, vocab_size: int) -> dict[str, float]:
    """Return the losses (nats per token) of three simple models on the same targets.

    uniform: Every token is equally likely.
    unigram: Probabilities of the tokens, whatever precedes them.
    bigram: Probabilities of the tokens given the previous token.

    The last two are entropies of the targets, so no unigram or bigram model has a lower loss.
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
