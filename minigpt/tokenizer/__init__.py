"""Text ↔ ids: one id a character, or one a subword.

Ids 0 to 3 are special tokens; the vocabulary follows. A special token is an id and never text:
encoding a text that spells "<eos>" gives the ids of what it is spelt with.
"""

import json
from pathlib import Path
from typing import Any

from minigpt.common.errors import UserError
from minigpt.tokenizer.base import BOS, EOS, PAD, SPECIAL_TOKENS, UNK, Decoder, Tokenizer
from minigpt.tokenizer.bpe import BPETokenizer
from minigpt.tokenizer.char import CharTokenizer

__all__ = [
    "BOS",
    "EOS",
    "PAD",
    "SPECIAL_TOKENS",
    "UNK",
    "BPETokenizer",
    "CharTokenizer",
    "Decoder",
    "Tokenizer",
    "load_tokenizer",
    "tokenizer_from_dict",
]


def tokenizer_from_dict(values: dict[str, Any]) -> Tokenizer:
    """The tokenizer that gave `values` by `to_dict`; raises ValueError where none did."""
    if not isinstance(values, dict):
        raise ValueError("no tokenizer")
    return BPETokenizer.from_dict(values) if "model" in values else CharTokenizer.from_dict(values)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer that was saved to `path`; raises UserError where it is missing or damaged."""
    try:
        return tokenizer_from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run `dvc repro build_vocab`") from None
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a vocabulary: {error}; run `dvc repro build_vocab`") from None
