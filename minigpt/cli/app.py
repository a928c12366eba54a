"""minigpt-cli: the application and its entry point. The commands are in one file each.

Each command imports its heavy dependencies when it runs, so that `generate --backend onnx` loads
only Typer, NumPy and ONNX Runtime.
"""

import io
import sys
from typing import Annotated

import typer

from minigpt.cli.bench import bench
from minigpt.cli.chat import chat
from minigpt.cli.convert import convert
from minigpt.cli.fetch import fetch
from minigpt.cli.generate import generate
from minigpt.cli.info import info
from minigpt.cli.page import page
from minigpt.cli.score import score
from minigpt.cli.serve import serve
from minigpt.common.entry_point import run_program
from minigpt.common.errors import UserError

# what to install for a package that the light installation lacks; others are in ".[pipeline]"
PROJECT = "` in the folder of MiniGPT's source code"
INSTALL = {
    "tokenizers": "tokenizers`, which models with subword tokens need",
    "pooch": "'pooch[progress]'`, which downloads corpora",
    "transformers": f"'.[hf]'{PROJECT}",
    "huggingface_hub": f"'.[hf]'{PROJECT}",
    "uvicorn": f"'.[serve]'{PROJECT}",
    "starlette": f"'.[serve]'{PROJECT}",
    "prometheus_client": f"'.[serve]'{PROJECT}",
}

app = typer.Typer(
    name="minigpt-cli",
    help="Generate and score text with a MiniGPT model.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (generate, chat, score, serve, page, bench, info, fetch, convert):
    app.command()(command)


def _print_version(requested: bool) -> None:
    if requested:
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
    """Run the application; an error caused by user input is one line on stderr and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # escape characters that the terminal's encoding lacks, instead of failing
            stream.reconfigure(errors="backslashreplace")
    run_program(_run, prefix="minigpt-cli: ", unnamed="standard output")


def _run() -> None:
    try:
        app()
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        install = INSTALL.get(package, f"'.[pipeline]'{PROJECT}")
        raise UserError(f"{package}: package not installed; run `pip install {install}") from None
