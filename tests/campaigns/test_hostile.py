"""Campaign: every kind of file that users can hand to MiniGPT is read as it is, or refused.

A file is refused in one line, within a minute, without a traceback or a crash. The cases take turns
with the kinds in `CHECKS`.
"""

import atexit
import contextlib
import io
import json
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from random import Random

import hostile_inputs as inputs
import pytest
from campaign import check_cases
from conftest import ROOT, data_config
from ruamel.yaml import YAML

from minigpt.cli.app import app
from minigpt.common.config import load_params
from minigpt.common.errors import UserError
from minigpt.corpus.corpus import Corpus
from minigpt.corpus.readers import Reader
from minigpt.tokenizer import load_tokenizer

SECONDS = 60
READ, REFUSED = (True, "read"), (True, "refused")


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


REDUCED, FULL = 40 * len(CHECKS), 3000 * len(CHECKS)


def try_file(kind: str, seed: int, folder: Path) -> tuple[bool, str]:
    """Return whether one file is treated well, and the outcome or what is wrong."""
    try:
        CHECKS[kind](Random(seed), folder)
    except UserError as error:  # always one line
        return (False, f"a correct file is refused: {error}") if kind == "corpus" else REFUSED
    except BaseException as error:  # a panic of a Rust library is no Exception
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        where = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
        return False, f"{type(error).__name__}: {str(error)[:300]!r} at {' '.join(where)}"
    return READ


class Worker:
    """Runs `try_file` in another process, which may crash or hang."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self._pid = self._pool.submit(os.getpid).result()

    def try_file(self, kind: str, seed: int, folder: Path) -> tuple[bool, str]:
        return self._pool.submit(try_file, kind, seed, folder).result(timeout=SECONDS)

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        self._pool.shutdown()


@cache
def worker() -> Worker:
    new = Worker()
    atexit.register(new.stop)
    return new


def run_case(number: int, folder: Path) -> str:
    seed, kind = divmod(number, len(CHECKS))
    name = list(CHECKS)[kind]
    try:
        well, outcome = worker().try_file(name, seed, folder)
    except (BrokenProcessPool, TimeoutError) as error:
        worker().stop()
        worker.cache_clear()
        well, outcome = False, f"crashed, or not done after {SECONDS} seconds: {error!r}"
    assert well, f"{name}: {outcome}"
    return outcome


@pytest.mark.slow
def test_hostile_files_are_read_or_refused(numbers, campaign_folder):
    check_cases(run_case, numbers, campaign_folder)
