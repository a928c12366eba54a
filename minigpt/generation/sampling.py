"""Logits → the next id.

One line, on which reproducible generation rests (the Gumbel-max trick; Maddison, Tarlow & Minka,
"A* Sampling", arXiv:1411.0030):

    next = argmax over the kept candidates of (logits / temperature + g)

With g from the Gumbel distribution this samples softmax(logits / temperature) exactly. Here g is a
pure function of (seed, sample, position), from a counter-based generator: it does not matter who
computes it, when, or in which order, and PyTorch and ONNX Runtime write the same text.

What the options do, they do in this order, which is that of Hugging Face's `generate`:

    never sampled → repetition_penalty → temperature → top_k → top_p → min_p → noise
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from minigpt.common.errors import UserError
from minigpt.tokenizer import BOS, EOS, PAD, UNK

NEVER_SAMPLED = [PAD, UNK, BOS]  # no text comes of them
GREEDY = 1e-9  # a lower temperature is 0


@dataclass(frozen=True)
class Sampling:
    """How to choose among the candidates.

    Attributes:
        temperature: above 1 bolder, below 1 safer, 0 greedy: always the likeliest. Finite, ≥ 0.
        top_k: keep the k likeliest candidates, ≥ 1; above the vocabulary it keeps all.
        top_p: of these, keep the likeliest that together reach this probability, in (0, 1].
        min_p: of these, keep those at least so likely, as a share of the likeliest, in [0, 1].
        repetition_penalty: tokens that occur in the text so far have positive logits divided by it and
            negative ones multiplied (Keskar et al., arXiv:1909.05858); above 0, and 1 changes nothing.
        ignore_eos: never end the text: <eos> is never sampled.
        seed: same seed, same text; in [0, 2^63).

    Raises:
        UserError: a value is out of its range.
    """

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    ignore_eos: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(
                f"temperature: must be a number of 0 (greedy) or more, but it is {self.temperature}"
            )
        if self.temperature < GREEDY:  # too small to divide by
            object.__setattr__(self, "temperature", 0.0)
        if self.top_k < 1:
            raise UserError(f"top-k: must be 1 or more, but it is {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top-p: must be above 0 and at most 1, but it is {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min-p: must be from 0 to 1, but it is {self.min_p}")
        if not 1e-3 <= self.repetition_penalty <= 1e3:
            raise UserError(
                f"repetition-penalty: must be from 0.001 to 1000, but it is {self.repetition_penalty}"
            )
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed: must be from 0 to 2^63 - 1, but it is {self.seed}")


def gumbel_noise(
    seed: int, sample: int, position: int, vocab_size: int, count: int = 1
) -> np.ndarray:
    """Gumbel noise (count, V) for the tokens from `position` on (<bos> is 0) of text number `sample`.

    Philox (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3") with the key
    (seed, sample); a counter step gives four numbers, so each position owns ⌈V / 4⌉ steps.
    """
    steps = -(-vocab_size // 4)
    generator = np.random.Generator(np.random.Philox(key=[seed, sample], counter=position * steps))
    uniform = generator.random((count, steps * 4))[:, :vocab_size]
    return -np.log(-np.log(np.maximum(uniform, 2.0**-53)))


class Noise:
    """`gumbel_noise` of one text, drawn for many positions at once."""

    def __init__(self, seed: int, sample: int, vocab_size: int):
        self._key = seed, sample
        self._vocab_size = vocab_size
        self._start, self._block = 0, np.empty((0, vocab_size))

    def rows(self, position: int, count: int) -> np.ndarray:
        """(count, V), from `position` on."""
        if not self._start <= position <= position + count <= self._start + len(self._block):
            self._start = position
            self._block = gumbel_noise(*self._key, position, self._vocab_size, max(count, 64))
        return self._block[position - self._start :][:count]


def next_tokens(
    logits: np.ndarray, noise: np.ndarray, sampling: Sampling, texts: Sequence[Sequence[int]] = ()
) -> Iterator[int]:
    """Logits (N, V) and the noise (N, V) for them → N ids.

    `texts`: the ids so far that each comes after; only the repetition penalty asks for them.
    """
    logits = logits.astype(np.float64)
    logits[:, : EOS + 1 if sampling.ignore_eos else EOS] = -np.inf  # the special tokens come first
    if sampling.repetition_penalty != 1:
        for row, seen in zip(logits, texts, strict=True):
            own = row[seen]
            row[seen] = np.where(
                own > 0, own / sampling.repetition_penalty, own * sampling.repetition_penalty
            )
    if not sampling.temperature:
        yield from logits.argmax(axis=1).tolist()
        return
    logits /= sampling.temperature
    # The best of the kept ones is the first kept one from the best of all down: nearly always the very first,
    # so that nothing need be sorted
    scores = logits + noise
    for own, score, token in zip(logits, scores, scores.argmax(axis=1).tolist(), strict=True):
        # a model that gives no numbers has none to keep
        while score[token] > -np.inf and not _kept(token, own, sampling):
            score[token] = -np.inf
            token = int(score.argmax())
        yield token


def _kept(token: int, logits: np.ndarray, sampling: Sampling) -> bool:
    """Whether top-k, top-p and min-p keep `token`, by the logits (V,) over the temperature."""
    among_top_k = (
        np.count_nonzero(logits >= logits[token]) <= sampling.top_k
    )  # with all of its equals
    if among_top_k and sampling.top_p == 1 and not sampling.min_p:
        return True
    better = logits > logits[token]
    better[:token] |= logits[:token] == logits[token]  # of equal logits the lower id comes first
    if np.count_nonzero(better) >= sampling.top_k:
        return False
    weights = np.exp(logits - logits.max())
    if sampling.top_p < 1:
        top = (
            np.partition(weights, -sampling.top_k)[-sampling.top_k :]
            if sampling.top_k < len(weights)
            else weights
        )
        if weights[better].sum() >= sampling.top_p * top.sum():
            return False
    return bool(weights[token] >= sampling.min_p)


def log_probabilities(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Of each of `ids` (N,), in nats, as the model itself has it: logits (N, V) → (N,), in float64."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits[np.arange(len(ids)), ids] - np.log(np.exp(logits).sum(axis=1))
