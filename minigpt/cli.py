"""minigpt-cli: generate text, look into model files, fetch corpora.

Everything heavy is imported inside the command that needs it: `generate --backend onnx` loads only
typer, NumPy and ONNX Runtime.
"""

import io
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minigpt.errors import UserError

if TYPE_CHECKING:
    from minigpt.backends.onnx import OnnxBackend
    from minigpt.backends.torch import TorchBackend

app = typer.Typer(
    name="minigpt-cli",
    help="Generate text with a MiniGPT model, and look at what is inside one.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class BackendName(StrEnum):
    torch = "torch"
    onnx = "onnx"


MODELS = {BackendName.onnx: Path("models/minigpt.onnx"), BackendName.torch: Path("models/minigpt.safetensors")}

ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model",
        "-m",
        help="Model file: .onnx or .safetensors; or models:/minigpt@champion, runs:/<id>/model of MLflow. "
        "Default: what `dvc repro` made.",
    ),
]
BackendOption = Annotated[
    BackendName | None,
    typer.Option("--backend", "-b", help="What computes. Default: by the model file's ending, else onnx."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command()
def generate(
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The text to continue. Default: standard input, if piped.")
    ] = None,
    backend: BackendOption = None,
    model: ModelOption = None,
    max_new_tokens: Annotated[int, typer.Option(help="Stop after so many tokens (or when the text ends).")] = 200,
    temperature: Annotated[
        float | None, typer.Option(help="Above 1 bolder, below 1 safer, 0 greedy. Default: 0.8.", show_default=False)
    ] = None,
    top_k: Annotated[int, typer.Option(help="Choose among the k likeliest tokens.")] = 50,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Always the likeliest token; same as temperature 0.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Same seed, same text, on either backend.")] = 0,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", help="How many texts to write.")] = 1,
    stream: Annotated[bool, typer.Option(help="Print as the text is written, or when it is finished.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Continue a text.

    Examples:

        minigpt-cli generate --prompt "The quick brown"

        echo "Once upon" | minigpt-cli generate --temperature 0.5 --seed 7

        minigpt-cli generate -p "The" -n 3 --json | jq -r .text
    """
    from minigpt.inference import generate as generate_text
    from minigpt.inference import generate_ids
    from minigpt.sampling import Sampling
    from minigpt.tokenizer import EOS, printable

    if greedy and temperature:
        raise UserError("greedy: means temperature 0; give --greedy or --temperature, not both")
    if num_samples < 1:
        raise UserError(f"num-samples: must be 1 or more, but it is {num_samples}")
    sampling = Sampling(0.0 if greedy else 0.8 if temperature is None else temperature, top_k, seed)
    engine = _load(backend, model)
    text = _read_prompt(prompt)
    if unknown := engine.tokenizer.unknown(text):
        _warn(f"the model does not know these characters and reads them as <unk>: {printable(unknown)}")
    try:
        for sample in range(num_samples):
            if as_json:
                ids = list(generate_ids(engine, text, max_new_tokens, sampling, sample))
                result = {
                    "prompt": text,
                    "text": engine.tokenizer.decode(ids),
                    "tokens": len(ids),
                    "stopped": "eos" if ids[-1] == EOS else "length",
                    "seed": seed,
                    "sample": sample,
                }
                print(json.dumps(result, ensure_ascii=False), flush=stream)
                continue
            pieces = generate_text(engine, text, max_new_tokens, sampling, sample)
            if sample:
                print("---")
            print(text, end="", flush=stream)
            for piece in pieces:
                print(piece, end="", flush=stream)
            print(flush=stream)
    except KeyboardInterrupt:
        print(flush=True)
        raise typer.Exit(130) from None


@app.command()
def info(backend: BackendOption = None, model: ModelOption = None, as_json: JsonOption = False) -> None:
    """Show what is inside a model file."""
    engine = _load(backend, model)
    metadata = {name: values for name, values in engine.metadata.items() if name != "tokenizer"}
    metadata["vocabulary"] = engine.tokenizer.describe()
    if as_json:
        print(json.dumps(metadata, ensure_ascii=False))
        return
    for section, values in metadata.items():
        if not isinstance(values, dict):
            print(f"{section}: {values}")
            continue
        print(f"{section}:")
        for key, value in values.items():
            print(f"  {key}: {value!r}" if isinstance(value, str) else f"  {key}: {value}")


@app.command()
def fetch(
    name: Annotated[str | None, typer.Argument(help="Which corpus. Without it, list them.")] = None,
) -> None:
    """Put a corpus into data/raw/.

    What is downloaded is checked against a known SHA-256. If the connection breaks off, run the command
    again: it goes on from there.
    """
    from minigpt.fetch import fetch as fetch_corpus
    from minigpt.fetch import listing

    if name is None:
        print(listing())
        return
    target = fetch_corpus(name, Path("data/raw"))
    print(f"{target}\ntrain on it: dvc exp run -S data.path={target}")


def _load(backend: BackendName | None, model: Path | None) -> "OnnxBackend | TorchBackend":
    if model is not None and model.parts[0] in ("models:", "runs:"):
        return _load_tracked(backend, model.as_posix())
    backend, model = _resolve(backend, model)
    if backend is BackendName.torch:
        from minigpt.backends.torch import TorchBackend

        return TorchBackend.load(model)
    from minigpt.backends.onnx import OnnxBackend

    return OnnxBackend(model)


def _load_tracked(backend: BackendName | None, uri: str) -> "OnnxBackend":
    """The ONNX file of a model that MLflow keeps."""
    import logging
    import os
    import tempfile

    if backend is BackendName.torch:
        raise UserError(f"{uri}: MLflow keeps the ONNX file; use --backend onnx")
    if "MLFLOW_TRACKING_URI" not in os.environ and not Path("mlflow.db").exists():
        raise UserError(f"{uri}: no tracking store here; run in the project's folder, or set MLFLOW_TRACKING_URI")
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    import mlflow.artifacts

    from minigpt.backends.onnx import OnnxBackend

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        try:
            kept = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder))
        except Exception as error:  # MLflow's, SQLAlchemy's, the network's
            raise UserError(f"{uri}: not found in MLflow: {' '.join(str(error).split())[:200]}") from None
        files = [kept] if kept.is_file() else sorted(kept.rglob("*.onnx"))
        if len(files) != 1:
            raise UserError(f"{uri}: no model with one ONNX file")
        return OnnxBackend(files[0])


def _resolve(backend: BackendName | None, model: Path | None) -> tuple[BackendName, Path]:
    """Which backend reads which file; each follows from the other where only one is given."""
    if model is None:
        backend = backend or BackendName.onnx
        return backend, MODELS[backend]
    suffixes = {path.suffix: name for name, path in MODELS.items()}
    if model.suffix not in suffixes:
        raise UserError(f"{model}: not a model file; it must end in {' or '.join(suffixes)}")
    fitting = suffixes[model.suffix]
    if backend not in (None, fitting):
        raise UserError(f"{model}: the {backend} backend does not read {model.suffix} files; use --backend {fitting}")
    return fitting, model


def _read_prompt(prompt: str | None) -> str:
    if prompt is not None:
        return prompt
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input: not UTF-8 text at byte {error.start}; convert it first") from None


def _warn(message: str) -> None:
    print(f"minigpt-cli: warning: {message}", file=sys.stderr)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"minigpt {version('minigpt')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
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
        sys.exit(f"minigpt-cli: this needs the package {error.name}; install MiniGPT with its extra: minigpt[pipeline]")


if __name__ == "__main__":
    main()
