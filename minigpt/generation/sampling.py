"""Sampling: logits → the next token id. The plain algorithm; `engine` has it for many rows at once.

Reproducible generation rests on one line, the Gumbel-max trick (Maddison, Tarlow & Minka,
"A* Sampling", arXiv:1411.0030):

    next = argmax over the kept candidates of (logits / temperature + g)

With g from the Gumbel distribution this samples softmax(logits / temperature) exactly. Here g is a
pure function of (seed, sample, position), from a counter-based generator. So the same seed gives
the same text on every backend, streamed or not, alone or in a batch.

The options apply in this order, which is that of Hugging Face's `generate`:

    special tokens → repetition_penalty → temperature → top_k → top_p → min_p → noise
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minigpt.common.errors import UserError
from minigpt.tokenizer import EOS

GREEDY = 1e-9  # a lower temperature counts as 0


@dataclass(frozen=True)
class Sampling:
    """Options for choosing the next token.

    Attributes:
        temperature: above 1 bolder, below 1 safer, 0 greedy (always the most probable token).
            Finite, ≥ 0.
        top_k: keep the k most probable tokens, ≥ 0; 0 or more than vocab_size keeps all.
        top_p: of these, keep the most probable ones that together reach this share, in (0, 1].
        min_p: of these, keep those with at least this share of the highest probability, in [0, 1].
        repetition_penalty: divide the positive logits of tokens that occur in the text by this,
            and multiply the negative ones (Keskar et al., arXiv:1909.05858). In [0.001, 1000];
            1 changes nothing.
        ignore_eos: never sample <eos>, so that the text does not end there.
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
        for name, valid, expected in (
            ("temperature", 0 <= self.temperature < math.inf, "a number of 0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", 1e-3 <= self.repetition_penalty <= 1e3, "from 0.001 to 1000"),
            ("seed", 0 <= self.seed < 2**63, "from 0 to 2^63 - 1"),
        ):
            if not valid:
                option, value = name.replace("_", "-"), getattr(self, name)
                raise UserError(f"{option}: must be {expected}, but it is {value}")
        if self.temperature < GREEDY:  # too small to divide by
            object.__setattr__(self, "temperature", 0.0)


def next_token(
    logits: np.ndarray, noise: np.ndarray, sampling: Sampling, previous_ids: Sequence[int] = ()
) -> int:
    """Choose the next token.

    Args:
        logits: the model's output for the last position (V,).
        noise: Gumbel noise (V,) for the position of the new token.
        sampling: the options.
        previous_ids: the text so far, used by the repetition penalty.

    Raises:
        UserError: the model computes NaN or infinity.
    """
    if not math.isfinite(logits.max()):
        raise not_finite()
    logits = logits.astype(np.float64)  # (V,), a copy

    # Step 1: never generate <pad>, <unk> and <bos>, the ids before <eos>, nor an unwanted <eos>.
    logits[:EOS] = -np.inf
    if sampling.ignore_eos:
        logits[EOS] = -np.inf

    # Step 2: make tokens of the text so far less probable.
    if sampling.repetition_penalty != 1:
        penalize(logits, previous_ids, sampling.repetition_penalty)

    # Step 3: apply the temperature; at 0 only the most probable token remains.
    if sampling.temperature == 0:
        return int(logits.argmax())
    logits /= sampling.temperature

    # Step 4: sort by probability (of equal ones the lower id is first), and keep the top k.
    candidates = np.argsort(-logits, kind="stable")[: sampling.top_k or None]  # (K,)
    logits, noise = logits[candidates], noise[candidates]  # (K,) each

    # Step 5: drop those behind the share top_p, and those below min_p times the best.
    weights = np.exp(logits - logits[0])  # (K,), probabilities times a constant
    before = np.cumsum(weights) - weights  # (K,), the weight of the better candidates
    dropped = (before >= sampling.top_p * weights.sum()) | (weights < sampling.min_p)

    # Step 6: add the noise; the best candidate is the next token.
    scores = np.where(dropped, -np.inf, logits + noise)  # (K,)
    return int(candidates[scores.argmax()])


def not_finite() -> UserError:
    """Return the error of a model whose highest logit is NaN or infinite."""
    return UserError("the model computes logits that are not finite numbers; it is damaged")


def penalize(logits: np.ndarray, previous_ids: Sequence[int] | np.ndarray, penalty: float) -> None:
    """Apply the repetition penalty to logits (V,), in place; repeated ids count once."""
    ids = np.array(previous_ids, dtype=np.int64)
    logits[ids] = np.where(logits[ids] > 0, logits[ids] / penalty, logits[ids] * penalty)


def gumbel_noise(
    seed: int, sample: int, position: int, vocab_size: int, count: int = 1
) -> np.ndarray:
    """Return Gumbel noise (count, V) for the tokens from `position` on (<bos> is at 0)."""
    return to_gumbel(uniform_noise(seed, sample, position, vocab_size, count))


def to_gumbel(uniform: np.ndarray) -> np.ndarray:
    """Turn numbers from [0, 1) into Gumbel noise, larger ones into larger noise."""
    noise: np.ndarray = -np.log(-np.log(np.maximum(uniform, 2.0**-53)))
    return noise


def uniform_noise(
    seed: int, sample: int, position: int, vocab_size: int, count: int = 1
) -> np.ndarray:
    """Return the numbers (count, V) from [0, 1) of which `gumbel_noise` is made.

    `sample` numbers independent texts of one seed. The numbers come from Philox (Salmon et al.,
    "Parallel Random Numbers: As Easy as 1, 2, 3") with the key (seed, sample). A step of its
    counter gives four numbers, so each position owns ⌈V / 4⌉ steps.
    """
    steps = -(-vocab_size // 4)
    generator = np.random.Generator(np.random.Philox(key=[seed, sample], counter=position * steps))
    return generator.random((count, steps * 4))[:, :vocab_size]  # (count, V)


def log_probabilities(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the log-probabilities (N,) of ids (N,) under logits (N, V), in nats and float64."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    normalizers: np.ndarray = np.log(np.exp(logits).sum(axis=1))  # (N,)
    log_probs: np.ndarray = logits[np.arange(len(ids)), ids] - normalizers  # (N,)
    return log_probs
