"""The tokenizer of a model file, read without the weights and without PyTorch."""

from pathlib import Path

import safetensors

from minigpt.common.errors import UserError
from minigpt.common.files import parse_json, read_errors
from minigpt.tokenizer import Tokenizer, tokenizer_from_dict


def load_tokenizer_of_model(path: Path) -> Tokenizer:
    """Return the tokenizer of the model file (.safetensors) `path`.

    The digest of the file covers the weights, so only those who load the weights verify it.

    Raises:
        UserError: The file is missing, or not a model file.
    """
    try:
        with read_errors(path, "copy the model there"), safetensors.safe_open(path, "np") as file:
            return tokenizer_from_dict(parse_json((file.metadata() or {})["minigpt"])["tokenizer"])
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError):
        raise UserError(f"{path}: damaged, or not written by MiniGPT") from None
