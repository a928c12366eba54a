"""Losses of simple models, to compare a trained model with."""

import math

import numpy as np

from minigpt.tokenizer import BOS, PAD

ORDERS = {"unigram": 0, "bigram": 1, "5-gram": 4}  # name → number of previous tokens
MAX_TOKENS = 1 << 24  # of the training split; limits memory to about 1 GB


def baselines(train_ids: np.ndarray, ids: np.ndarray, vocab_size: int) -> dict[str, float]:
    """Return the losses (nats per token) of simple models on the targets of `ids`.

    uniform: Every token is equally likely.
    unigram, bigram, 5-gram: Probabilities of a token given the 0, 1 or 4 tokens before it in the
        document, counted on the training split (its first `MAX_TOKENS` tokens).

    A context of n tokens is interpolated with its last n - 1 tokens (Witten & Bell, 1991), where d
    is the number of distinct tokens that follow the context:

        p(token | context) = (count(context, token) + d · p(token | shorter)) / (count(context) + d)

    Args:
        train_ids: Training split (M,), to count.
        ids: Split to predict (N,). As in `Batches`, every token but <bos> is a target.
        vocab_size: Size of the vocabulary.
    """
    train_ids = train_ids[:MAX_TOKENS]
    both = np.concatenate([train_ids, ids]).astype(np.int64)  # (M+N,)
    is_target = both != BOS
    counted, predicted = is_target.copy(), is_target.copy()
    counted[len(train_ids) :], predicted[: len(train_ids)] = False, False

    # Before any context: add one to each count, so that no token has probability 0.
    counts = np.bincount(both[counted], minlength=vocab_size) + 1  # (V,)
    p = (counts / counts.sum())[both[predicted]]  # (number of targets,)
    losses = {"uniform": math.log(vocab_size), "unigram": _mean_loss(p)}
    contexts = np.zeros_like(both)  # index of the context of each token
    for length in range(1, max(ORDERS.values()) + 1):
        contexts = _number(contexts * vocab_size + _previous(both, length))
        pairs = _number(contexts * vocab_size + both)  # index of context and token
        context_counts = np.bincount(contexts[counted], minlength=contexts.max() + 1)
        pair_counts = np.bincount(pairs[counted], minlength=pairs.max() + 1)
        _, first = np.unique(pairs[counted], return_index=True)  # each pair once
        distinct = np.bincount(contexts[counted][first], minlength=contexts.max() + 1)
        context, pair = contexts[predicted], pairs[predicted]
        total, d = context_counts[context], distinct[context]
        # a context that was never seen says nothing: keep p
        p = np.where(total > 0, (pair_counts[pair] + d * p) / np.maximum(total + d, 1), p)
        losses |= {name: _mean_loss(p) for name, n in ORDERS.items() if n == length}
    return losses


def _previous(ids: np.ndarray, distance: int) -> np.ndarray:
    """Return the token `distance` positions before each token, <pad> before its document."""
    positions = np.arange(len(ids))
    document_starts = np.maximum.accumulate(np.where(ids == BOS, positions, 0))
    inside = positions - document_starts >= distance
    return np.where(inside, ids[positions - distance], PAD)


def _number(keys: np.ndarray) -> np.ndarray:
    """Replace equal keys by equal numbers from 0."""
    return np.unique(keys, return_inverse=True)[1]


def _mean_loss(p: np.ndarray) -> float:
    return float(-np.log(p).mean())
