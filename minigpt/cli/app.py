"""minigpt-cli: the application, its entry point, and its commands, one file each.

A command imports everything heavy when it runs: `generate --backend onnx` loads only Typer, NumPy
and ONNX Runtime.
"""

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from minigpt.cli.fetch import fetch
from minigpt.cli.generate import generate
from minigpt.cli.info import info
from minigpt.cli.models import DEFAULT_MODELS, BackendName, load_backend
from minigpt.cli.options import (
    BackendOption,
    JsonOption,
    MaxNewTokensOption,
    MinPOption,
    ModelOption,
    RepetitionPenaltyOption,
    SeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
)
from minigpt.cli.output import print_table
from minigpt.cli.score import score
from minigpt.common.errors import UserError

app = typer.Typer(
    name="minigpt-cli",
    help="Generate text with a MiniGPT model, and look at what is inside one.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(generate)


@app.command()
def chat(
    backend: BackendOption = None,
    model: ModelOption = None,
    max_new_tokens: MaxNewTokensOption = 200,
    temperature: TemperatureOption = None,
    top_k: TopKOption = 50,
    top_p: TopPOption = 1.0,
    min_p: MinPOption = 0.0,
    repetition_penalty: RepetitionPenaltyOption = 1.0,
    seed: SeedOption = 0,
) -> None:
    """Write a text in turns with the model: you begin, it goes on. /help tells what else there is.

    Examples:

        minigpt-cli chat --temperature 0.6

        printf "Once upon a time\\n/regenerate\\n" | minigpt-cli chat
    """
    from minigpt.cli.chat import Chat
    from minigpt.generation.sampling import Sampling

    sampling = Sampling(
        temperature=0.8 if temperature is None else temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    try:
        Chat(load_backend(backend, model), sampling, max_new_tokens).run()
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


app.command()(score)


@app.command()
def bench(
    models: Annotated[
        list[Path] | None, typer.Argument(help="Model files. Default: those that `dvc repro` made.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="The length of each text.")] = 200,
    rounds: Annotated[int, typer.Option(help="How often each way writes.")] = 7,
    as_json: JsonOption = False,
) -> None:
    """Measure how fast models write on this machine: a text alone and 16 texts, all ways in turn.

    Where the model file has a table of guesses, tokens_per_run shows how far it helps: guesses that prove
    right save runs of the model, and the text is the same.
    """
    from minigpt.cli.bench import measure

    if rounds < 1:
        raise UserError(f"rounds: must be 1 or more, but it is {rounds}")
    paths = (
        models
        or [path for path in DEFAULT_MODELS.values() if path.exists()]
        or [DEFAULT_MODELS[BackendName.onnx]]
    )
    print_table(
        measure({str(path): load_backend(None, path) for path in paths}, max_new_tokens, rounds),
        as_json,
    )


app.command()(info)
app.command()(fetch)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"minigpt {version('minigpt')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """The entry point: a mistake of the user's is one line on stderr and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a character that the terminal cannot show is written as its code, and does not end the text
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except UserError as error:
        sys.exit(f"minigpt-cli: {error}")
    except ModuleNotFoundError as error:
        sys.exit(
            f"minigpt-cli: this needs the package {error.name}; install MiniGPT with its extra: minigpt[pipeline]"
        )


if __name__ == "__main__":
    main()
