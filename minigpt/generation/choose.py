"""Choice of the next token, faster than `sampling.next_token` and equal to it."""

import math
from dataclasses import replace

import numpy as np

from minigpt.generation.sampling import Sampling, next_token, not_finite, to_gumbel
from minigpt.tokenizer import EOS

NEAR = 12  # logits below the highest, above which the top k are sought first
MAX_TRIES = 8  # candidates to try one by one


def choose_token(
    logits: np.ndarray, noise: np.ndarray, sampling: Sampling, penalties: np.ndarray | None = None
) -> int:
    """Return what `sampling.next_token` returns, for logits (V,) and noise (V,).

    The filters run last: the candidate with the best score is almost always one that they keep, so
    nothing is sorted. After MAX_TRIES candidates that they drop, `next_token` decides, since at a
    high temperature thousands could follow. `penalties` (V,) contains the repetition penalty of
    each token.
    """
    temperature = sampling.temperature
    # (V,), a copy
    logits = logits.astype(np.float64) if penalties is None else _penalize(logits, penalties)
    logits[: EOS + 1 if sampling.ignore_eos else EOS] = -np.inf
    scores = logits  # (V,)
    if temperature:
        logits /= temperature
        scores = logits + noise
    token = int(scores.argmax())
    if not math.isfinite(logits[token]):
        raise not_finite()
    if temperature == 0:
        return token
    # try candidates from the best down; the first that the filters keep wins
    for _ in range(MAX_TRIES):
        if _is_kept(token, logits, sampling):
            return token
        scores[token] = -np.inf
        token = int(scores.argmax())
    applied = replace(sampling, temperature=1.0, repetition_penalty=1.0)
    return next_token(logits, noise, applied)


def choose_from_many(
    logits: np.ndarray, uniform: np.ndarray, sampling: Sampling, penalties: np.ndarray | None = None
) -> int:
    """Return what `choose_token` returns, faster if the vocabulary is large and `top_k` small.

    Only tokens that can be among the top k get Gumbel noise, which costs two logarithms, from the
    numbers `uniform` (V,).
    """
    logits = logits.copy() if penalties is None else _penalize(logits, penalties)  # (V,)
    special = EOS + 1
    logits[: special if sampling.ignore_eos else EOS] = -np.inf
    lowest = _kth_largest(logits, min(sampling.top_k, len(logits)))
    # `choose_token` expects the special tokens first
    others = special + np.flatnonzero(logits[special:] >= lowest)
    ids = np.concatenate((np.arange(special), others))  # (N,)
    return int(ids[choose_token(logits[ids], to_gumbel(uniform[ids]), sampling)])


def _kth_largest(logits: np.ndarray, k: int) -> np.floating:
    """Return the k-th largest of logits (V,), of which most are far below the largest."""
    highest = logits.max()
    if not np.isfinite(highest):
        raise not_finite()
    near = logits[logits >= highest - NEAR]
    among = near if len(near) >= k else logits
    smallest: np.floating = np.partition(among, len(among) - k)[len(among) - k]
    return smallest


def _penalize(logits: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    penalized: np.ndarray = np.where(logits > 0, logits / penalties, logits * penalties)
    return penalized


def _is_kept(token: int, logits: np.ndarray, sampling: Sampling) -> bool:
    """Return whether the filters keep `token`, given logits (V,) divided by the temperature."""
    top_k, top_p, min_p = sampling.top_k or len(logits), sampling.top_p, sampling.min_p
    # even if all equal logits ranked before it
    surely_in_top_k = np.count_nonzero(logits >= logits[token]) <= top_k
    if surely_in_top_k and top_p == 1 and min_p == 0:
        return True
    better = logits > logits[token]
    better[:token] |= logits[:token] == logits[token]  # of equal logits the lower id ranks first
    if np.count_nonzero(better) >= top_k:
        return False
    weights = np.exp(logits - logits.max())
    if top_p < 1:
        kept = np.partition(weights, -top_k)[-top_k:] if top_k < len(weights) else weights
        if weights[better].sum() >= top_p * kept.sum():
            return False
    return bool(weights[token] >= min_p)
