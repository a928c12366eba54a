"""One generate loop over any backend."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from minigpt.errors import UserError
from minigpt.sampling import Sampling, next_token
from minigpt.tokenizer import EOS, Tokenizer


class Backend(Protocol):
    """What generation needs of a model; `backends/torch.py` and `backends/onnx.py` have it."""

    tokenizer: Tokenizer
    max_seq_len: int

    def logits(self, ids: np.ndarray, past: Any) -> tuple[np.ndarray, Any]:
        """Ids (B, T) that follow those in the cache `past` (None: none) → logits (B, T, V), cache."""
        ...


def window_start(position: int, max_seq_len: int) -> int:
    """Where the context of the token at `position` begins: it is [window_start, position).

    The model sees `max_seq_len` positions. Beyond, the window moves by half its length at a time,
    not at each token: cached keys hold their position in the window, so a move means to read the
    whole window again. A function of the position alone, so that every path gives the same text.
    """
    stride = max(1, max_seq_len // 2)
    excess = max(0, position - max_seq_len)
    return -(-excess // stride) * stride


def generate_ids(
    backend: Backend, prompt: str, max_new_tokens: int = 200, sampling: Sampling | None = None, sample: int = 0
) -> Iterator[int]:
    """The ids that continue `prompt`, one at a time; the last is <eos> where the model ends the text.

    `sample` numbers independent texts of one seed: each is what it would be alone.

    Raises:
        UserError: at the call, where `max_new_tokens` is less than 1.
    """
    if max_new_tokens < 1:
        raise UserError(f"max-new-tokens: must be 1 or more, but it is {max_new_tokens}")
    return _continue(backend, prompt, max_new_tokens, sampling or Sampling(), sample)


def _continue(backend: Backend, prompt: str, max_new_tokens: int, sampling: Sampling, sample: int) -> Iterator[int]:
    ids = backend.tokenizer.encode(prompt)[:-1]  # <bos> and the prompt; <eos> would end the text here
    past, start, known = None, -1, 0
    for _ in range(max_new_tokens):
        position = len(ids)
        if window_start(position, backend.max_seq_len) != start:
            start = window_start(position, backend.max_seq_len)
            past, known = None, start
        logits, past = backend.logits(np.array([ids[known:]]), past)
        known = position
        token = next_token(logits[0, -1], sampling, sample, position)
        ids.append(token)
        yield token
        if token == EOS:
            return


def generate(
    backend: Backend, prompt: str, max_new_tokens: int = 200, sampling: Sampling | None = None, sample: int = 0
) -> Iterator[str]:
    """The text that continues `prompt`, piece by piece, each of whole characters; see `generate_ids`.

    >>> backend = OnnxBackend(Path("models/minigpt.onnx"))  # doctest: +SKIP
    >>> "".join(generate(backend, "The quick brown", sampling=Sampling(temperature=0)))  # doctest: +SKIP
    """
    return backend.tokenizer.stream(generate_ids(backend, prompt, max_new_tokens, sampling, sample))
