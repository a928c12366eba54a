"""Generation, token by token: the plain loop, without a cache, a batch or drafts.

`engine` generates the same text faster; the tests hold both equal.
"""

from collections.abc import Iterator

import numpy as np

from minigpt.generation.backend import Backend
from minigpt.generation.sampling import Sampling, gumbel_noise, next_token
from minigpt.tokenizer import EOS

PREFILL_CHUNK = 32  # tokens; larger chunks are not faster, and other texts would wait longer


def generate_ids(
    backend: Backend,
    prompt: str,
    max_new_tokens: int = 200,
    sampling: Sampling = Sampling(),
    sample: int = 0,
) -> Iterator[int]:
    """Yield the ids that continue `prompt`; the last one is <eos> if the model ends the text.

    `sample` numbers independent texts of one seed.
    """
    # Step 1: turn the prompt into ids: <bos> and the text, without the <eos> that would end it.
    ids = backend.tokenizer.encode(prompt)[:-1]
    for _ in range(max_new_tokens):
        # Step 2: pass the last tokens through the model; the last position predicts the next token.
        position = len(ids)
        window = np.array(ids[window_start(position, backend.max_seq_len) :])  # (T,)
        logits = backend.new_cache(1).prefill(0, window, cached_length=0)  # (T, V)

        # Step 3: choose the next token, with the noise of its position.
        noise = gumbel_noise(sampling.seed, sample, position, logits.shape[1])  # (1, V)
        token = next_token(logits[-1], noise[0], sampling, ids)

        # Step 4: append it; <eos> ends the text.
        ids.append(token)
        yield token
        if token == EOS:
            return


def window_start(position: int, max_seq_len: int) -> int:
    """Return where the context of the token at `position` starts; it ends before `position`.

    The model sees at most `max_seq_len` positions. Beyond, the window moves by half its length at a
    time rather than by one token: cached keys depend on their position in the window, so each move
    costs a forward pass over the whole window. The start depends on the position alone, so every
    backend and every batch size gives the same text.
    """
    stride = max(1, max_seq_len // 2)
    excess = max(0, position - max_seq_len)
    return -(-excess // stride) * stride


def chunk_end(start: int, read: int) -> int:
    """Return where the next chunk of a window ends; `read` of its tokens are already cached.

    `engine` reads a window in chunks, between which the other texts of a batch continue. The
    borders are at multiples of PREFILL_CHUNK from the start of the window; the last chunk ends with
    the text. The logits of a quantized model depend on the number of tokens in a forward pass, so
    every engine must read the same chunks to generate the same text.
    """
    return start + (read // PREFILL_CHUNK + 1) * PREFILL_CHUNK
