"""Campaign: every kind of file that users can hand to MiniGPT is read as it is, or refused.

A file is refused in one line, within a minute, without a traceback or a crash. `make test-slow`
tries a few files of each kind, `make test-full` thousands. To try one again:

    PYTHONPATH=.:tests python tests/campaigns/test_hostile.py KIND SEED…
"""

import contextlib
import io
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from random import Random

import hostile_inputs as inputs
import pytest
from conftest import ROOT, data_config
from ruamel.yaml import YAML

from minigpt.cli.app import app
from minigpt.common.config import load_params
from minigpt.common.errors import UserError
from minigpt.corpus.corpus import Corpus
from minigpt.corpus.readers import Reader
from minigpt.tokenizer import load_tokenizer

SECONDS = 60
MAX_LINE = 1000  # characters of a message


def plain(text: str) -> str:
    """Return `text` with the line ends of the readers, and without those at its ends."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip("\n")


def corpus(rng: Random, folder: Path) -> None:
    """Read a correct file; the texts are those that were written."""
    extension, data, texts = inputs.corpus(rng)
    path = folder / f"corpus{extension}"
    path.write_bytes(data)
    found = [plain("\n".join(lines)) for lines in Reader(data_config(path))]
    if extension.startswith((".txt", ".md")):
        texts = ["\n".join(texts)]
    assert found == list(map(plain, texts))


def odd_corpus(rng: Random, folder: Path) -> None:
    """Read a damaged or strange file; what is read is text."""
    extension, data = inputs.odd_file(rng)
    path = folder / f"odd{extension}"
    path.write_bytes(data)
    config = data_config(
        path,
        documents=rng.choice(["line", "blank_line", "file", "separator", "none"]),
        format=rng.choice(["auto"] * 5 + ["text", "csv", "tsv", "jsonl", "parquet"]),
        invalid_utf8=rng.choice(["error", "replace"]),
        normalization=rng.choice(["NFC", "NFKD", "none"]),
    )
    for document in Corpus(config):
        document.text.encode()


def vocabulary(rng: Random, folder: Path) -> None:
    from hostile_models import MODELS

    path = folder / "vocab.json"
    path.write_bytes(inputs.changed_json(rng, rng.choice(MODELS)[1]["tokenizer"]))
    tokenizer = load_tokenizer(path)
    for text in ("", "the café <eos> \0", "\ud83d a"):
        tokenizer.decode(tokenizer.encode(text))


def params(rng: Random, folder: Path) -> None:
    path, original = folder / "params.yaml", ROOT / "params.yaml"
    values = YAML(typ="safe", pure=True).load(original)
    kinds = [
        lambda: inputs.changed_json(rng, values),
        lambda: inputs.damage(rng, original.read_bytes()),
        lambda: rng.choice(inputs.YAML_TEXTS),
    ]
    path.write_bytes(rng.choice(kinds)())
    load_params(path)


def prompts(rng: Random, folder: Path) -> None:
    """Continue the lines of a file; each is the prompt of one text."""
    data = rng.choice([inputs.odd_file(rng)[1][:2000], "\n".join(inputs.texts(rng)).encode()])
    path = folder / "prompts.txt"
    path.write_bytes(data)
    output = minigpt_cli("generate", *exact_model(rng, folder), "--prompts-file", path)
    found = [json.loads(line)["prompt"] for line in output.removesuffix("\n").split("\n")]
    text = data.decode().removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    assert found == text.removesuffix("\n").split("\n")
    minigpt_cli("score", *exact_model(rng, folder)[:2], path)


def exact_model(rng: Random, folder: Path) -> list[str]:
    """Return the options that name a correct model."""
    from hostile_models import MODELS

    from minigpt.export.onnx_graph import to_onnx

    path = folder / "model.onnx"
    path.write_bytes(to_onnx(*rng.choice(MODELS)))
    return ["--model", str(path), "--max-new-tokens", "2"]


def checkpoint(rng: Random, folder: Path) -> None:
    from hostile_models import checkpoint_file

    checkpoint_file(rng, folder / "model.safetensors")
    use(rng, folder / "model.safetensors")


def onnx_model(rng: Random, folder: Path) -> None:
    from hostile_models import onnx_file

    onnx_file(rng, folder / "model.onnx")
    use(rng, folder / "model.onnx")


def use(rng: Random, path: Path) -> None:
    """Generate longer than the context, in a batch, or show the file; the output is JSON."""
    generate = ["generate", "--prompt", "the", "--json", "--max-new-tokens", "20"]
    command = rng.choice([generate, [*generate, "--num-samples", "3"], ["info", "--json"]])
    for line in minigpt_cli(*command, "--model", path).splitlines():
        json.loads(line)


def minigpt_cli(*arguments: str | Path) -> str:
    """Run a command in this process and return its output."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        app(list(map(str, arguments)), standalone_mode=False)
    return out.getvalue()


CHECKS: dict[str, Callable[[Random, Path], None]] = {
    check.__name__: check
    for check in (corpus, odd_corpus, vocabulary, params, prompts, checkpoint, onnx_model)
}


def problem(kind: str, seed: int, folder: Path) -> str | None:
    """Return what is wrong with how one input is treated, or None."""
    try:
        CHECKS[kind](Random(seed), folder)
    except UserError as error:
        message = str(error)
        if kind == "corpus":
            return f"a correct file is refused: {message}"
        one_line = len(message.splitlines()) == 1 and len(message) <= MAX_LINE
        return None if one_line else f"not one line: {message!r}"
    except BaseException as error:  # a panic of a Rust library is no Exception
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        where = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
        return f"{type(error).__name__}: {str(error)[:300]!r} at {' '.join(where)}"
    return None


class Worker:
    """Runs `problem` in another process, which may crash or hang."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context)
        self._pid = self._pool.submit(os.getpid).result()

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        self._pool.shutdown()

    def problem(self, kind: str, seed: int, folder: Path) -> str | None:
        try:
            return self._pool.submit(problem, kind, seed, folder).result(timeout=SECONDS)
        except BrokenProcessPool:
            found = "the process crashed"
        except TimeoutError:
            found = f"not done after {SECONDS} seconds"
        self.stop()
        self._start()
        return found


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.stop()


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHECKS)
def test_hostile_files_are_read_or_refused(kind, worker, full, tmp_path):
    problems = {}
    for seed in range(2000 if full else 40):
        if found := worker.problem(kind, seed, tmp_path):
            problems[seed] = found
    assert not problems


if __name__ == "__main__":
    kind, *seeds = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        for seed in map(int, seeds):
            print(kind, seed, problem(kind, seed, Path(folder)))
