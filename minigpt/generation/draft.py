"""Draft tokens for speculative decoding, from an n-gram table.

The draft uses the same Gumbel noise g that sampling will use for the position:

    draft token = argmax of (log p + temperature · g)

So where the table and the model roughly agree, they choose the same token, even among many
probable ones.
"""

import numpy as np

from minigpt.data.ngram_table import MAX_CONTEXT, NgramTable
from minigpt.tokenizer import EOS

MAX_TEMPERATURE = 1e6  # above, the noise alone decides; the product must stay finite in float32


def draft_tokens(
    table: NgramTable, ids: list[int], noise: np.ndarray, temperature: float
) -> list[int]:
    """Draft the tokens after `ids`, one for each row of `noise` (N, V); an <eos> is the last."""
    lookup, context = table.log_probs.get, tuple(ids[-MAX_CONTEXT:])
    tokens: list[int] = []
    for gumbel in (noise * min(temperature, MAX_TEMPERATURE)).astype(np.float32):
        # Dropped for good: the table has the start of each of its contexts too, so it cannot have
        # a longer context that begins with one that it lacks.
        while (log_probs := lookup(context)) is None:
            context = context[1:]
        token = int((log_probs + gumbel).argmax())
        tokens.append(token)
        if token == EOS:
            break
        context = (*context, token)[-MAX_CONTEXT:]
    return tokens
