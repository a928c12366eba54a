"""minigpt-cli convert: from a model file to a folder of Hugging Face, and from GPT-2 to a file."""

import shlex
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minigpt.cli.input import expand_home
from minigpt.common.entry_point import raise_on_interrupt
from minigpt.common.errors import UserError

if TYPE_CHECKING:
    from minigpt.common.config import ModelConfig

SUFFIX = ".safetensors"
TOKENS = Path("data/tokens")


def convert(
    source: Annotated[Path, typer.Argument(help="Model file (.safetensors), or folder of GPT-2.")],
    target: Annotated[
        Path, typer.Argument(help="Folder to write, or model file (.safetensors) to write.")
    ],
    tokens: Annotated[
        Path | None,
        typer.Option(
            help="Token files, on whose validation split logits and ids are compared. Default: "
            "data/tokens, if they fit the model."
        ),
    ] = None,
) -> None:
    """Convert a model to Hugging Face, or a GPT-2 from there.

    A model file becomes a folder that the package transformers loads without other code. A local
    folder with a GPT-2 becomes a model file, from which a training can start. Either is written
    only if its logits and its token ids equal those of the source.

    For example:

        minigpt-cli convert models/minigpt.safetensors tales/

        minigpt-cli convert gpt2/ pretrained/gpt2.safetensors
    """
    source, target = expand_home(source), expand_home(target)
    if not source.exists():
        raise UserError(f"{source}: not found; name a model file or the folder of a GPT-2")
    if not source.is_dir() and source.suffix != SUFFIX:
        raise UserError(f"{source}: must be a model file ({SUFFIX}) or the folder of a GPT-2")
    if target.exists():
        raise UserError(f"{target}: exists already; name another one, or remove it")
    if source.is_dir() == (target.suffix != SUFFIX):
        expected = f"model file ({SUFFIX})" if source.is_dir() else "folder"
        raise UserError(f"{target}: must be a {expected}, because {source} is converted to one")
    if source.is_dir():
        _from_hugging_face(source, target)
    else:
        _to_hugging_face(source, target, tokens)


def _to_hugging_face(source: Path, target: Path, token_folder: Path | None) -> None:
    from minigpt.data.token_files import Tokens
    from minigpt.interop.hugging_face import write_folder
    from minigpt.tokenizer.pretrained import load_tokenizer_of_model

    raise_on_interrupt()
    tokenizer = load_tokenizer_of_model(source)
    tokens = None
    # those of another model are only in the way
    with nullcontext() if token_folder else suppress(UserError):
        tokens = Tokens(token_folder or TOKENS, tokenizer)
    print(f"{target}: {write_folder(source, target, tokens)}")


def _from_hugging_face(source: Path, target: Path) -> None:
    from minigpt.interop.hugging_face import read_folder

    raise_on_interrupt()
    parity, config, tokenizer = read_folder(source, target)
    print(f"{target}: {parity}")
    if target.parent.name == "pretrained":
        print(f"fine-tune it: {_fine_tuning(target.name, config, tokenizer.normalization)}")


def _fine_tuning(name: str, config: "ModelConfig", normalization: str) -> str:
    """Return the command that trains from the file `name`, with a start for all that matters."""
    overrides = [
        "tokenizer.type=pretrained",
        f"data.normalization={normalization}",
        f"train.init_from=pretrained/{name}",
        "train.optimizer=adamw",  # the weights were trained with it
        "train.learning_rate=1e-4",
        "train.min_learning_rate=1e-5",
    ]
    overrides += [
        f"model.{key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in config.model_dump(exclude={"dropout"}).items()
    ]
    options = [part for override in overrides for part in ("-S", override)]
    return shlex.join(["dvc", "exp", "run", *options])
