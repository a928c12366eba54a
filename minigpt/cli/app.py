"""minigpt-cli: generate and score text, look into model files, fetch corpora.

Everything heavy is imported inside the command that needs it: `generate --backend onnx` loads only
typer, NumPy and ONNX Runtime.
"""

import csv
import io
import json
import sys
from collections import deque
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minigpt.common.errors import UserError
from minigpt.common.text import visible

if TYPE_CHECKING:
    from minigpt.generation.backend import Backend
    from minigpt.generation.engine import Text
    from minigpt.generation.onnx_backend import OnnxBackend
    from minigpt.generation.sampling import Sampling
    from minigpt.generation.torch_backend import TorchBackend

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


MODELS = {
    BackendName.onnx: Path("models/minigpt.onnx"),
    BackendName.torch: Path("models/minigpt.safetensors"),
}

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
    typer.Option(
        "--backend", "-b", help="What computes. Default: by the model file's ending, else onnx."
    ),
]
MaxNewTokensOption = Annotated[
    int, typer.Option(help="Stop after so many tokens (or when the text ends).")
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(help="Above 1 bolder, below 1 safer, 0 greedy. Default: 0.8.", show_default=False),
]
TopKOption = Annotated[int, typer.Option(help="Choose among the k likeliest tokens.")]
TopPOption = Annotated[
    float, typer.Option(help="Choose among the likeliest that together reach this probability.")
]
MinPOption = Annotated[
    float, typer.Option(help="Choose among those at least so likely, as a share of the likeliest.")
]
RepetitionPenaltyOption = Annotated[
    float, typer.Option(help="Above 1: what has occurred becomes less likely.")
]
SeedOption = Annotated[int, typer.Option(help="Same seed, same text, on either backend.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command()
def generate(
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", "-p", help="The text to continue. Default: standard input, if piped."
        ),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(help="Continue each line of this file; prints JSON, a line a text."),
    ] = None,
    backend: BackendOption = None,
    model: ModelOption = None,
    max_new_tokens: MaxNewTokensOption = 200,
    temperature: TemperatureOption = None,
    top_k: TopKOption = 50,
    top_p: TopPOption = 1.0,
    min_p: MinPOption = 0.0,
    repetition_penalty: RepetitionPenaltyOption = 1.0,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Always the likeliest token; same as temperature 0.")
    ] = False,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Write on where the model would end.")
    ] = False,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text. Can be given several times.")
    ] = None,
    seed: SeedOption = 0,
    num_samples: Annotated[
        int, typer.Option("--num-samples", "-n", help="How many texts to write.")
    ] = 1,
    logprobs: Annotated[
        bool,
        typer.Option(
            "--logprobs", help="With --json: each token's log-probability in the model, in nats."
        ),
    ] = False,
    stream: Annotated[
        bool, typer.Option(help="Print as the text is written, or when it is finished.")
    ] = True,
    speculate: Annotated[
        bool, typer.Option(help="Guess ahead with the model file's n-grams: the same text, sooner.")
    ] = True,
    raw: Annotated[
        bool, typer.Option("--raw", help="Print control characters as they are, not as \\x1b.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Continue a text.

    What the options do to the candidates for the next token, they do in this order: repetition penalty,
    temperature, top-k, top-p, min-p.

    Examples:

        minigpt-cli generate --prompt "The quick brown"

        echo "Once upon" | minigpt-cli generate --temperature 0.5 --seed 7

        minigpt-cli generate -p "The" -n 3 --json | jq -r .text

        minigpt-cli generate -p "Said the fox" --stop . --stop "!"

        minigpt-cli generate --prompts-file beginnings.txt > texts.jsonl
    """
    from minigpt.generation.engine import Text, write
    from minigpt.generation.sampling import Sampling

    if greedy and temperature:
        raise UserError("greedy: means temperature 0; give --greedy or --temperature, not both")
    if num_samples < 1:
        raise UserError(f"num-samples: must be 1 or more, but it is {num_samples}")
    as_json = as_json or prompts_file is not None
    if logprobs and not as_json:
        raise UserError("logprobs: comes with --json; give that too")
    sampling = Sampling(
        0.0 if greedy else 0.8 if temperature is None else temperature,
        *(top_k, top_p, min_p, repetition_penalty, ignore_eos, seed),
    )
    prompts = _read_prompts(prompt, prompts_file)
    engine = _load(backend, model)
    if not speculate:
        engine.draft = None
    _warn_of_unknown(engine, "".join(prompts))
    texts = [
        Text(engine.tokenizer, prompt, sample, max_new_tokens, stop or (), logprobs)
        for prompt in prompts
        for sample in range(num_samples)
    ]
    show = str if raw else visible
    try:
        if as_json:
            for text in _finished(engine, texts, sampling):
                print(json.dumps(_result(text, engine, seed), ensure_ascii=False), flush=stream)
        elif stream:
            for text in texts:
                print("---\n" * bool(text.sample) + show(text.prompt), end="", flush=True)
                for _, piece in write(engine, [text], sampling):
                    print(show(piece), end="", flush=True)
                print(flush=True)
        else:
            finished = (
                show(text.prompt + text.text) for text in _finished(engine, texts, sampling)
            )
            print(*finished, sep="\n---\n")
    except KeyboardInterrupt:
        print(end="" if as_json else "\n", flush=True)
        raise typer.Exit(130) from None


def _finished(engine: "Backend", texts: "list[Text]", sampling: "Sampling") -> "Iterator[Text]":
    """All of `texts`, written many at a time, in their order."""
    from minigpt.generation.engine import write

    waiting = deque(texts)
    for _ in write(engine, texts, sampling):
        while waiting and waiting[0].stopped:
            yield waiting.popleft()


def _result(text: "Text", engine: "Backend", seed: int) -> dict[str, Any]:
    result = {
        "prompt": text.prompt,
        "text": text.text,
        "tokens": len(text.written),
        "stopped": text.stopped,
        "seed": seed,
        "sample": text.sample,
    }
    if text.logprobs is not None:
        pieces = (engine.tokenizer.token_strings[token] for token in text.written)
        result["logprobs"] = [
            [piece, round(logprob, 6)] for piece, logprob in zip(pieces, text.logprobs, strict=True)
        ]
    return result


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

    temperature = 0.8 if temperature is None else temperature
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed=seed)
    try:
        Chat(_load(backend, model), sampling, max_new_tokens).run()
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def score(
    files: Annotated[list[Path], typer.Argument(help="Texts in UTF-8; - is standard input.")],
    backend: BackendOption = None,
    model: ModelOption = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="Score each line too, after those before it.")
    ] = False,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
) -> None:
    """Measure how well the model predicts texts: loss (nats a token), perplexity, bits per character.

    A file is one document, and its end is predicted too.

    Examples:

        minigpt-cli score chapter-1.txt chapter-2.txt

        minigpt-cli score --lines --csv poem.txt > poem.csv
    """
    from minigpt.evaluation.score import score as score_text

    if as_json and as_csv:
        raise UserError("csv: give --json or --csv, not both")
    texts = {str(file): _read_text(file).removesuffix("\n") for file in files}
    engine = _load(backend, model)
    _warn_of_unknown(engine, "".join(texts.values()))
    rows = []
    for name, text in texts.items():
        whole, each = score_text(engine, text)
        rows.append({"file": name, "line": None, **whole.figures()})
        if lines:
            rows += [
                {"file": name, "line": number, **line.figures()}
                for number, line in enumerate(each, start=1)
            ]
    _print_table(rows, as_json, as_csv)


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
        models or [path for path in MODELS.values() if path.exists()] or [MODELS[BackendName.onnx]]
    )
    _print_table(
        measure({str(path): _load(None, path) for path in paths}, max_new_tokens, rounds), as_json
    )


@app.command()
def info(
    backend: BackendOption = None, model: ModelOption = None, as_json: JsonOption = False
) -> None:
    """Show what is inside a model file."""
    engine = _load(backend, model)
    metadata = {
        name: values
        for name, values in engine.metadata.items()
        if name not in ("tokenizer", "draft")
    }
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
    from minigpt.corpus.fetch import fetch as fetch_corpus
    from minigpt.corpus.fetch import listing

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
        from minigpt.generation.torch_backend import TorchBackend

        return TorchBackend.load(model)
    from minigpt.generation.onnx_backend import OnnxBackend

    return OnnxBackend(model)


def _load_tracked(backend: BackendName | None, uri: str) -> "OnnxBackend":
    """The ONNX file of a model that MLflow keeps."""
    import logging
    import os
    import tempfile

    if backend is BackendName.torch:
        raise UserError(f"{uri}: MLflow keeps the ONNX file; use --backend onnx")
    if "MLFLOW_TRACKING_URI" not in os.environ and not Path("mlflow.db").exists():
        raise UserError(
            f"{uri}: no tracking store here; run in the project's folder, or set MLFLOW_TRACKING_URI"
        )
    os.environ |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    import mlflow.artifacts

    from minigpt.generation.onnx_backend import OnnxBackend

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        try:
            kept = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder))
        except Exception as error:  # MLflow's, SQLAlchemy's, the network's
            raise UserError(
                f"{uri}: not found in MLflow: {' '.join(str(error).split())[:200]}"
            ) from None
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
        raise UserError(
            f"{model}: the {backend} backend does not read {model.suffix} files; use --backend {fitting}"
        )
    return fitting, model


def _read_prompts(prompt: str | None, prompts_file: Path | None) -> list[str]:
    if prompts_file is not None:
        if prompt is not None:
            raise UserError("prompts-file: give --prompt or --prompts-file, not both")
        return _read_text(prompts_file).removesuffix("\n").split("\n")
    if prompt is not None:
        return [prompt]
    if sys.stdin is None or sys.stdin.isatty():
        return [""]
    return [_read_stdin().removesuffix("\n")]


def _read_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UserError(
            f"standard input: not UTF-8 text at byte {error.start}; convert it first"
        ) from None


def _read_text(path: Path) -> str:
    if str(path) == "-":
        return _read_stdin()
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text at byte {error.start}; convert it first") from None


def _warn_of_unknown(engine: "Backend", text: str) -> None:
    from minigpt.common.text import printable

    if unknown := engine.tokenizer.unknown(text):
        _warn(
            f"the model does not know these characters and reads them as <unk>: {printable(unknown)}"
        )


def _print_table(rows: list[dict[str, Any]], as_json: bool = False, as_csv: bool = False) -> None:
    """JSON a row a line, or CSV, or columns for the eye."""
    if as_json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return
    if as_csv:
        writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        print(line[0].ljust(widths[0]), *padded, sep="  ")


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        "" if value is None else f"{value:.4f}" if isinstance(value, float) else visible(str(value))
    )


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
