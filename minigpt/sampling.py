"""Logits → the next id.

One line, on which reproducible generation rests (the Gumbel-max trick; Maddison, Tarlow & Minka,
"A* Sampling", arXiv:1411.0030):

    next = argmax over the kept candidates of (logits / temperature + g)

With g from the Gumbel distribution this samples softmax(logits / temperature) exactly. Here g is a
pure function of (seed, sample, position), from a counter-based generator: it does not matter who
computes it, when, or in which order, and PyTorch and ONNX Runtime write the same text.
"""

import math
from dataclasses import dataclass

import numpy as np

from minigpt.errors import UserError
from minigpt.tokenizer import BOS, PAD, UNK

NEVER_SAMPLED = [PAD, UNK, BOS]  # no text comes of them


@dataclass(frozen=True)
class Sampling:
    """How to choose among the candidates.

    Attributes:
        temperature: above 1 bolder, below 1 safer, 0 greedy: always the likeliest. Finite, ≥ 0.
        top_k: keep the k likeliest candidates, ≥ 1; above the vocabulary it keeps all.
        seed: same seed, same text; in [0, 2^63).

    Raises:
        UserError: a value is out of its range.
    """

    temperature: float = 0.8
    top_k: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"temperature: must be a number of 0 (greedy) or more, but it is {self.temperature}")
        if self.top_k < 1:
            raise UserError(f"top-k: must be 1 or more, but it is {self.top_k}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed: must be from 0 to 2^63 - 1, but it is {self.seed}")


def gumbel_noise(seed: int, sample: int, position: int, vocab_size: int) -> np.ndarray:
    """Gumbel noise (V,) for the token at `position` (<bos> is 0) of text number `sample`.

    Philox (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3") with the key
    (seed, sample); a counter step gives four numbers, so each position owns ⌈V / 4⌉ steps.
    """
    steps = -(-vocab_size // 4)
    generator = np.random.Generator(np.random.Philox(key=[seed, sample], counter=position * steps))
    uniform = generator.random(vocab_size)
    return -np.log(-np.log(np.maximum(uniform, 2.0**-53)))


def next_token(logits: np.ndarray, sampling: Sampling, sample: int, position: int) -> int:
    """The id of the token at `position`, given the logits (V,) for it."""
    logits = logits.astype(np.float64)
    logits[NEVER_SAMPLED] = -np.inf
    if sampling.temperature == 0:
        return int(logits.argmax())
    # stable: of equal logits the lower id comes first
    kept = np.argsort(-logits, kind="stable")[: sampling.top_k]
    noise = gumbel_noise(sampling.seed, sample, position, len(logits))[kept]
    # from the best down, so that a tiny temperature overflows to -inf at worst, and the best stays
    with np.errstate(over="ignore"):
        scores = (logits[kept] - logits[kept[0]]) / sampling.temperature + noise
    return int(kept[scores.argmax()])
