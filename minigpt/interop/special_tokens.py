"""Ids of the same token in MiniGPT and in GPT-2, which has one special token instead of four.

    MiniGPT   <pad> <unk> <bos> <eos>  t0  t1  …  tn
    GPT-2     t0  t1  …  tn  <|endoftext|>

<|endoftext|> is <bos> at the start of a text and <eos> at its end; <pad> and <unk> have no
counterpart. A model with `single_special_token` treats its four tokens accordingly. Other models
keep their ids, since GPT-2's class computes with any vocabulary.
"""

import torch
from torch import Tensor

from minigpt.tokenizer import EOS, SPECIAL_TOKENS

END_OF_TEXT = "<|endoftext|>"
FIRST = len(SPECIAL_TOKENS)


def their_rows(vocab_size: int, single_special_token: bool) -> Tensor:
    """Return our id of each of their ids, for a vocabulary of ours with `vocab_size` tokens."""
    if not single_special_token:
        return torch.arange(vocab_size)
    return torch.tensor([*range(FIRST, vocab_size), EOS])


def our_rows(vocab_size: int, end_of_text: int | None) -> Tensor:
    """Return their id of each of our ids, for a vocabulary of theirs with `vocab_size` tokens."""
    if end_of_text is None:
        return torch.arange(vocab_size)
    others = [token for token in range(vocab_size) if token != end_of_text]
    return torch.tensor([end_of_text] * FIRST + others)
