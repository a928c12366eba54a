"""Text ↔ token ids: one id per character, or one per subword.

Ids 0 to 3 are special tokens; the vocabulary follows. A special token is an id and never text:
text that spells "<eos>" is encoded as the characters of its spelling.
"""

from pathlib import Path
from typing import Any

from minigpt.common.errors import UserError
from minigpt.common.files import parse_json, read_errors
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
    """Return the tokenizer whose `to_dict` gave `values`.

    Raises:
        ValueError: No tokenizer gives such values.
    """
    if not isinstance(values, dict):
        raise ValueError("no tokenizer")
    return BPETokenizer.from_dict(values) if "model" in values else CharTokenizer.from_dict(values)


def load_tokenizer(path: Path) -> Tokenizer:
    """Load the tokenizer that was saved to `path`.

    Raises:
        UserError: The file is missing or damaged.
    """
    advice = "run the stage build_vocab"
    try:
        with read_errors(path, advice):
            return tokenizer_from_dict(parse_json(path.read_bytes()))
    except ValueError as error:
        raise UserError(f"{path}: not a vocabulary: {error}; {advice}") from None
