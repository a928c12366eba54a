"""Folders of Hugging Face: written from a model file, and read into one; both only if equal."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt.common.config import ModelConfig
from minigpt.common.errors import UserError, one_line
from minigpt.common.files import atomic_folder, atomic_write, file_digest
from minigpt.common.format_version import FORMAT_VERSION
from minigpt.data.token_files import Tokens
from minigpt.interop.gpt2 import from_gpt2, to_gpt2
from minigpt.interop.model_card import model_card
from minigpt.interop.parity import Parity, check_parity
from minigpt.interop.tokenizer import from_transformers, to_transformers
from minigpt.model.checkpoint import load_model, save
from minigpt.tokenizer import BOS, EOS, PAD, Tokenizer, tokenizer_from_dict

if TYPE_CHECKING:
    import transformers

Loaded = tuple["transformers.GPT2LMHeadModel", "transformers.PreTrainedTokenizerBase"]
WEIGHTS = "model.safetensors"


def write_folder(source: Path, folder: Path, tokens: Tokens | None = None) -> Parity:
    """Write the model file `source` as a folder that `transformers` loads without other code.

    Args:
        source: Model file (.safetensors).
        folder: Folder to write, which must not exist.
        tokens: Token files; logits and ids are compared on their validation split.

    Raises:
        UserError: No class of `transformers` computes the same as the model, or what it loads from
            the folder differs; the folder is then not written.
    """
    model, metadata = load_model(source)
    tokenizer = tokenizer_from_dict(metadata["tokenizer"])
    single = model.config.single_special_token
    with _named(source), quiet(), atomic_folder(folder) as temporary:
        theirs = to_gpt2(model)
        end_of_text = theirs.config.vocab_size - 1 if single else None
        _set_generation(theirs, end_of_text)
        theirs.save_pretrained(temporary)
        to_transformers(tokenizer, model.max_seq_len, single).save_pretrained(temporary)
        _name_tokenizer_class(temporary)
        parity = check_parity(model, tokenizer, *_load(temporary), end_of_text, tokens)
        model_card(model.config, metadata, parity).save(temporary / "README.md")
    return parity


def read_folder(folder: Path, target: Path) -> tuple[Parity, ModelConfig, Tokenizer]:
    """Write the GPT-2 in `folder` as the model file `target` (.safetensors), and return its parts.

    Raises:
        UserError: The folder holds no such model, or the result would differ from it.
    """
    with _named(folder), quiet():
        their_model, their_tokenizer = _load(folder)
        tokenizer, end_of_text = from_transformers(their_tokenizer)
        size = len(their_tokenizer)
        if size != their_model.config.vocab_size:
            raise UserError(
                f"its tokenizer has {size} tokens, but its model {their_model.config.vocab_size}"
            )
        model = from_gpt2(their_model, end_of_text)
        if tokenizer.vocab_size != model.token_embedding.num_embeddings:
            raise UserError(
                "its tokenizer has tokens that were added to the vocabulary, such as [PAD], which "
                "MiniGPT cannot have; convert the model without them"
            )
        parity = check_parity(model, tokenizer, their_model, their_tokenizer, end_of_text, None)
    metadata = {
        "format_version": FORMAT_VERSION,
        "config": {"vocab_size": tokenizer.vocab_size, **model.config.model_dump()},
        "parameters": model.num_parameters,
        "tokenizer": tokenizer.to_dict(),
        "lineage": {"converted_from": their_model.config.architectures, **_digest(folder)},
    }
    save(target, model.state_dict(), metadata)
    return parity, model.config, tokenizer


def _load(folder: Path) -> Loaded:
    """Load model and tokenizer with `transformers`, from local files and without pickle."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, GPT2LMHeadModel

    local = {"local_files_only": True}
    try:
        kind = AutoConfig.from_pretrained(folder, **local).model_type
        if kind != "gpt2":
            raise UserError(f"its model_type is {kind}; only gpt2 can be converted")
        model, report = GPT2LMHeadModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **local
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, split_special_tokens=True, **local)
    except UserError:
        raise
    except Exception as error:  # `transformers` and the libraries below raise no narrower class
        raise UserError(f"cannot be loaded by transformers: {one_line(error)}") from None
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"its weights are incomplete: {', '.join(missing)}")
    return model.eval(), tokenizer


def _set_generation(theirs: "transformers.GPT2LMHeadModel", end_of_text: int | None) -> None:
    """Set the special tokens, and the defaults of `minigpt-cli generate`."""
    from transformers import GenerationConfig

    ids = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    if end_of_text is not None:
        ids = dict.fromkeys(ids, end_of_text)
    for name, token in ids.items():
        setattr(theirs.config, name, token)
    never = None if end_of_text is not None else list(range(EOS))
    theirs.generation_config = GenerationConfig(
        **ids, do_sample=True, temperature=0.8, top_k=50, suppress_tokens=never
    )


def _name_tokenizer_class(folder: Path) -> None:
    """Name the class by which versions 4 and 5 of `transformers` know it."""
    file = folder / "tokenizer_config.json"
    values = json.loads(file.read_text("utf-8"))
    values["tokenizer_class"] = "PreTrainedTokenizerFast"
    atomic_write(file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _digest(folder: Path) -> dict[str, Any]:
    file = folder / WEIGHTS
    return {"source_sha256": file_digest(file, "sha256")} if file.exists() else {}


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Begin the message of an error with `path`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars and warnings of `transformers`, which are for its own users."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
