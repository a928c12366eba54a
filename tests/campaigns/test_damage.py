"""Campaign: a damaged file that MiniGPT wrote is refused, detected, or makes no difference.

A case flips bits of one byte, or cuts off the end. Each byte of a header is tried: the whole file
if it is text, the part before the tensors of safetensors, both ends of ONNX files. Nothing reads
data/documents.parquet; DVC compares its MD5.
"""

import io
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from campaign import check_cases
from conftest import SENTENCES, build_model, data_config, model_metadata, runtime_config

from minigpt.cli.models import load_backend
from minigpt.common.errors import UserError
from minigpt.corpus.corpus import Corpus
from minigpt.corpus.encode import encode_corpus
from minigpt.data.token_files import Tokens
from minigpt.export.onnx_graph import to_onnx
from minigpt.generation.engine import generate
from minigpt.model.checkpoint import save
from minigpt.tokenizer import BPETokenizer, CharTokenizer, load_tokenizer
from minigpt.training.best_weights import BestWeights
from minigpt.training.resume import ResumeStore

SIZES = {"d_model": 32, "num_heads": 2, "num_layers": 1, "d_ff": 32, "max_seq_len": 16}


def read_tokens(folder: Path) -> Any:
    """Read token files as the stage train does."""
    tokens = Tokens(folder / "tokens", load_tokenizer(folder / "vocab.json"))
    return [tokens.info, [ids.tobytes() for ids in tokens.ids.values()]]


def read_model(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        backend = load_backend(None, folder / name)
        return [backend.metadata, "".join(generate(backend, "The quick", 20))]

    return read


def read_state(folder: Path) -> Any:
    """Read a checkpoint as a resumed training does: a damaged one is passed over."""
    with TemporaryDirectory() as copy:  # a store deletes what it cannot use
        for name in ("step-000000001.safetensors", "best-000000001.safetensors"):
            shutil.copy(folder / name, copy)
        loaded = ResumeStore(Path(copy), runtime_config()).load()
    if loaded is None:
        raise UserError("passed over")
    tensors, metadata = loaded
    return [metadata, {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}]


# a damaged file, and what is read from its folder
KINDS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "vocabulary": ("vocab.json", read_tokens),
    "BPE": ("bpe/vocab.json", lambda folder: read_tokens(folder / "bpe")),
    "token file": ("tokens/train.bin", read_tokens),
    "meta.json": ("tokens/meta.json", read_tokens),
    "checkpoint": ("model.safetensors", read_model("model.safetensors")),
    "state": ("step-000000001.safetensors", read_state),
    "best weights": ("best-000000001.safetensors", read_state),
    "ONNX": ("model.onnx", read_model("model.onnx")),
    "int8 ONNX": ("int8.onnx", read_model("int8.onnx")),
}
PER_KIND = 6000  # 1,000 random bytes, 1,000 truncations, 4,000 bytes of headers
REDUCED, FULL = 24 * len(KINDS), PER_KIND * len(KINDS)


@cache
def artifacts(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Write a file of each kind; return the folder, and what is read from each undamaged file."""
    folder = folder / "artifacts"
    documents = list(Corpus(data_config(SENTENCES, val_fraction=0.2)))
    tokenizer, bpe = CharTokenizer(normalization="NFC"), BPETokenizer(280, "NFC")
    for target, each in ((folder, tokenizer), (folder / "bpe", bpe)):
        (target / "tokens").mkdir(parents=True)
        each.build_vocab(document.text for document in documents)
        each.save(target / "vocab.json")
        encode_corpus(documents, each, target / "tokens", target / "documents.parquet")
    torch.manual_seed(0)
    model = build_model(tokenizer.vocab_size, **SIZES).eval()
    metadata = model_metadata(model, tokenizer, format_version=2)
    save(folder / "model.safetensors", dict(model.state_dict()), metadata)
    state = {"step": 1, "progress": {"best_step": 1}}
    save(folder / "step-000000001.safetensors", dict(model.state_dict()), state)
    BestWeights(folder).keep(1, dict(model.state_dict()))
    (folder / "model.onnx").write_bytes(to_onnx(model, metadata))
    (folder / "int8.onnx").write_bytes(to_onnx(model, metadata, "int8"))
    return folder, {kind: read(folder) for kind, (_, read) in KINDS.items()}


def header(name: str, data: bytes) -> list[int]:
    """Return the places of the bytes that describe the others."""
    if name.endswith(".json"):
        return list(range(len(data)))
    if name.endswith(".safetensors"):
        return list(range(8 + int.from_bytes(data[:8], "little")))
    return [*range(min(200, len(data))), *range(max(0, len(data) - 3800), len(data))]


def damaged(name: str, data: bytes, number: int) -> bytes:
    rng = Random(number)
    places, step = header(name, data), number // 6
    match number % 6:
        case 0:
            place = rng.randrange(len(data))
        case 1:
            return data[: rng.randrange(len(data))]
        case part:
            place = places[(4 * step + part - 2) % len(places)]
    changed = bytearray(data)
    changed[place] ^= rng.randrange(1, 256)
    return bytes(changed)


def run_case(number: int, folder: Path) -> str:
    folder, expected = artifacts(folder)
    kind = list(KINDS)[number % len(KINDS)]
    name, read = KINDS[kind]
    file, whole = folder / name, folder / "whole"
    shutil.copy(file, whole)
    file.write_bytes(damaged(name, whole.read_bytes(), number // len(KINDS)))
    try:
        with redirect_stderr(io.StringIO()) as warnings:
            same = read(folder) == expected[kind]
    except UserError:  # always one line
        return "refused"
    finally:
        whole.replace(file)
    assert same or warnings.getvalue(), f"{kind}: other values without a word"
    return "identical" if same else "detected"


@pytest.mark.slow
def test_damaged_files_are_refused_or_detected(numbers, campaign_folder):
    check_cases(run_case, numbers, campaign_folder)
