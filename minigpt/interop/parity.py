"""Proof that a model and a tokenizer of `transformers` compute the same as ours."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from minigpt.common.errors import UserError
from minigpt.data.batches import Batches
from minigpt.data.token_files import Tokens
from minigpt.interop.special_tokens import our_rows
from minigpt.model.model import MiniGPT
from minigpt.tokenizer import BOS, EOS, Tokenizer

if TYPE_CHECKING:
    import transformers

TOLERANCE = 1e-5  # of a logit, relative to the largest one
MAX_ROWS = 8  # of the validation split, whose logits are compared
MAX_DOCUMENTS = 1000  # of the validation split, whose ids are compared
TEXTS = (  # that a tokenizer can get wrong
    "",
    "  two  spaces\t\n\nand lines\r\n",
    "<pad><unk><bos><eos> <|endoftext|> </s>",
    "It's 3,141.59 o'clock; they'll've gone!?",
    "naïve café e\u0301, Ⅷ ﬁ ß Σίσυφος",
    "Привет мир, שלום עולם, مرحبا بالعالم",
    "你好，世界。こんにちは 안녕하세요 สวัสดี",
    "🦊👩\u200d👩\u200d👧 \x00\x07\x7f \u2028\u00a0\ufeff",
)


@dataclass(frozen=True)
class Parity:
    """Largest difference of a logit, and how many rows and texts were compared."""

    difference: float
    rows: int
    texts: int

    def __str__(self) -> str:
        return (
            f"equal logits in {self.rows} texts (largest difference {self.difference:.1e}), "
            f"equal ids in {self.texts} texts"
        )


def check_parity(
    model: MiniGPT,
    tokenizer: Tokenizer,
    their_model: "transformers.GPT2LMHeadModel",
    their_tokenizer: "transformers.PreTrainedTokenizerBase",
    end_of_text: int | None,
    tokens: Tokens | None,
) -> Parity:
    """Compare logits and ids, on the validation split of `tokens` if there is one.

    `end_of_text` is the id of their single special token, None if they have our four.

    Raises:
        UserError: Something differs.
    """
    rows = our_rows(their_model.config.vocab_size, end_of_text)  # their id of each of ours
    texts = [*TEXTS, *_documents(tokenizer, tokens)]
    compare_ids(tokenizer, their_tokenizer, rows, texts)
    all_ids = [*_random_rows(model), *_validation_rows(model, tokens)]
    first = 0 if end_of_text is None else EOS  # the tokens before are never predicted
    difference = compare_logits(model, their_model, rows, all_ids, first)
    return Parity(difference, len(all_ids), len(texts))


def compare_ids(
    tokenizer: Tokenizer,
    theirs: "transformers.PreTrainedTokenizerBase",
    rows: Tensor,
    texts: Iterable[str],
) -> None:
    """Raise UserError unless both tokenizers encode and decode all texts alike."""
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        their_ids = theirs(text, add_special_tokens=False)["input_ids"]
        decoded = theirs.decode(their_ids, skip_special_tokens=True)
        if their_ids != rows[ids].tolist() or decoded != tokenizer.decode(ids):
            raise UserError(
                f"the tokenizers differ: for the text {text[:80]!r}, transformers gives the ids "
                f"{their_ids[:20]}, which mean {decoded[:80]!r}, but {rows[ids][:20].tolist()} "
                f"were expected, which mean {tokenizer.decode(ids)[:80]!r}"
            )


@torch.inference_mode()
def compare_logits(
    model: MiniGPT,
    theirs: "transformers.GPT2LMHeadModel",
    rows: Tensor,
    all_ids: Iterable[Tensor],
    first: int,
) -> float:
    """Return the largest difference of a logit, of the tokens from id `first` on.

    Raises:
        UserError: It is larger than rounding explains.
    """
    largest = highest = 0.0
    for ids in all_ids:  # (T,)
        ours = model(ids.unsqueeze(0))[0, :, first:]  # (T, V)
        other = theirs(input_ids=rows[ids].unsqueeze(0)).logits[0][:, rows[first:]]  # (T, V)
        largest = max(largest, np.nan_to_num((ours - other).abs().max().item(), nan=np.inf))
        highest = max(highest, ours.abs().max().item())
    if not largest <= TOLERANCE * max(1.0, highest):
        raise UserError(
            f"the logits differ by {largest:.2g}, more than rounding explains (the largest logit "
            f"is {highest:.2g}); this is a bug: please report it"
        )
    return largest


def _random_rows(model: MiniGPT) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    V, S = model.token_embedding.num_embeddings, model.max_seq_len
    first = torch.arange(min(S, V))  # the special tokens are among them
    return [first, *(torch.randint(V, (length,), generator=generator) for length in (S // 2, S))]


def _validation_rows(model: MiniGPT, tokens: Tokens | None) -> list[Tensor]:
    if tokens is None:
        return []
    batches = Batches(tokens.ids[tokens.val_split], "packed", 1, model.max_seq_len)
    return [torch.from_numpy(input_ids[0]) for input_ids, _ in islice(batches, MAX_ROWS)]


def _documents(tokenizer: Tokenizer, tokens: Tokens | None) -> list[str]:
    """Return the texts of the first documents of the validation split."""
    if tokens is None:
        return []
    ids = tokens.ids[tokens.val_split]
    starts = np.flatnonzero(ids == BOS)[: MAX_DOCUMENTS + 1]
    return [tokenizer.decode(part.tolist()) for part in np.split(ids, starts[1:])[:MAX_DOCUMENTS]]
