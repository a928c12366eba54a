"""Compare the modules of the page with Python, in Node.js."""

import itertools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import NEEDS_NPM, ROOT, engine_ids
from page_models import (
    GENERATIONS,
    SETTINGS,
    attention_of,
    build_page_models,
    stop_within_token,
    tiny_model,
)

from minigpt.evaluation.score import score
from minigpt.generation.engine import generate
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.sampling import Sampling, gumbel_noise, next_token
from minigpt.serving.build_page import build_page

pytestmark = [pytest.mark.slow, NEEDS_NPM]
TEXTS = [
    "",
    "The quick brown fox.",
    "naïve café 🦊\n\nIt's 12 o'clock,  isn't it?\t\n",
    "e\u0301 ẖ İstanbul ΟΔΟΣ ﬁ",
    "\u00a0\u2003\u0085\ufeff x\u200d👩‍👩‍👧 שלום עולם",
    "<eos> a\ud83eb \ud800",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer, sentences) -> dict[str, Path]:
    return build_page_models(tmp_path_factory.mktemp("models"), tokenizer, sentences)


@pytest.fixture(scope="module")
def javascript(tmp_path_factory, npm_packages, models):
    """Return a function that runs jobs for engine.mjs."""
    page = tmp_path_factory.mktemp("site") / "page"
    build_page(page, models["char"])
    (page / "package.json").write_text('{"type": "module"}')  # for Node.js

    def run(jobs: list[dict[str, Any]]) -> list[Any]:
        command = ["node", str(Path(__file__).parent / "engine.mjs"), str(page)]
        output = subprocess.run(command, input=json.dumps(jobs), stdout=subprocess.PIPE, text=True)
        return json.loads(output.stdout)

    return run


def as_json(sampling: Sampling) -> dict[str, Any]:
    return {**vars(sampling), "seed": str(sampling.seed)}


def test_noise_equals_that_of_numpy(javascript):
    keys = [(0, 0, 1, 67), (2**63 - 1, 2**32 - 1, 20_000, 1024), (2**53 + 1, 7, 0, 5)]
    names = ("seed", "sample", "position", "size")
    jobs = [{"call": "noise", **dict(zip(names, key, strict=True))} for key in keys]
    for job in jobs:
        job["seed"] = str(job["seed"])  # beyond the integers of a double
    for key, found in zip(keys, javascript(jobs), strict=True):
        expected = gumbel_noise(*key)[0]
        # the last bits of logarithms differ between libraries
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-14)
        assert np.mean(found == expected) > 0.5


def test_decisions_equal_those_of_python(javascript):
    random = np.random.default_rng(0)
    jobs, expected = [], []
    for number, settings in itertools.product(range(20), SETTINGS):
        logits = random.normal(scale=3, size=30).astype(np.float32)
        logits = np.round(logits * 2) / 2 if number % 2 else logits  # many ties
        noise, ids = random.gumbel(size=30), random.integers(0, 30, size=5)
        sampling = Sampling(**settings)
        values = {"logits": logits.tolist(), "noise": noise.tolist(), "ids": ids.tolist()}
        jobs.append({"call": "decide", "sampling": as_json(sampling), **values})
        expected.append(next_token(logits, noise, sampling, ids.tolist()))
    assert javascript(jobs) == expected


def test_tokens_equal_those_of_python(javascript, models):
    jobs, expected = [], []
    for name, text in itertools.product(models, TEXTS):
        tokenizer = OnnxBackend(models[name]).tokenizer
        ids = tokenizer.encode(text)
        jobs.append({"call": "encode", "model": str(models[name]), "text": text})
        jobs.append({"call": "decode", "model": str(models[name]), "ids": ids})
        expected += [ids, tokenizer.decode(ids)]
    assert javascript(jobs) == expected


@pytest.mark.parametrize("name", ["char", "fast", "gpt2"])
def test_texts_equal_those_of_python(javascript, models, name):
    backend = OnnxBackend(models[name])
    jobs, expected = [], []
    for prompt, settings in GENERATIONS:
        sampling = Sampling(**settings)
        values = {"prompt": prompt, "max_new_tokens": 80, "sampling": as_json(sampling)}
        jobs.append({"call": "generate", "model": str(models[name]), "stop": [], **values})
        expected.append(engine_ids(backend, prompt, 80, sampling))
    found = javascript(jobs)
    assert [result["ids"] for result in found] == expected
    assert sum(result["accepted"] for result in found) > 10  # drafts are in use
    assert max(map(len, expected)) == 80 > backend.max_seq_len  # the window moves


def test_text_ends_before_a_stop_sequence(javascript, models):
    backend = OnnxBackend(models["gpt2"])
    stop = [stop_within_token(backend, engine_ids(backend, "The", 80, Sampling()))]
    values = {"prompt": "The", "max_new_tokens": 80, "sampling": as_json(Sampling())}
    (found,) = javascript(
        [{"call": "generate", "model": str(models["gpt2"]), "stop": stop, **values}]
    )
    expected = generate(backend, "The", 80, stop=stop)
    assert found["text"] == "".join(expected)
    assert found["finishReason"] == "stop"


def test_digest_is_checked_where_there_is_one(javascript, models, tmp_path):
    data = models["char"].read_bytes()
    damaged = data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]
    cases = [(data, True), (damaged, False), (data[:-1] + b"x", False), (data[:-76], None)]
    jobs = []
    for number, (content, _) in enumerate(cases):
        (tmp_path / str(number)).write_bytes(content)
        jobs.append({"call": "intact", "file": str(tmp_path / str(number))})
    assert javascript(jobs) == [intact for _, intact in cases]


def test_int8_model_generates_text(javascript, models):
    # WebAssembly does not round activations, so texts may differ from those of Python
    values = {"prompt": "The", "max_new_tokens": 40, "sampling": as_json(Sampling())}
    (found,) = javascript(
        [{"call": "generate", "model": str(models["int8"]), "stop": [], **values}]
    )
    expected = engine_ids(OnnxBackend(models["int8"]), "The", 40, Sampling())
    assert found["ids"][:3] == expected[:3]


@pytest.mark.parametrize("name", ["char", "fast", "gpt2"])
def test_scores_equal_those_of_python(javascript, models, name):
    text = "The quick brown fox.\nA naïve 🦊 jumps over the lazy dog\n\nand on, and on, and on."
    total, lines = score(OnnxBackend(models[name]), text)
    (found,) = javascript([{"call": "score", "model": str(models[name]), "text": text}])
    for here, there in zip([total, *lines], found, strict=True):
        for key, value in here.figures().items():
            assert there[key] == pytest.approx(value, rel=1e-4), key


@pytest.mark.parametrize("name", ["char", "fast", "int8"])
def test_attention_equals_that_of_pytorch(javascript, models, tokenizer, name):
    ids = [2, *range(5, 25)]
    (layers,) = javascript([{"call": "attention", "model": str(models[name]), "ids": ids}])
    expected = attention_of(tiny_model(name, tokenizer), ids)  # (L, H, T, T)
    tolerance = 0.03 if name == "int8" else 1e-4
    found = np.array(layers).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, atol=tolerance)


def test_example_in_node_needs_no_minigpt(npm_packages, models, tmp_path):
    # beside node_modules, as after `npm install` in the project
    shutil.copy(ROOT / "examples/generate.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(npm_packages)
    for name in ("char", "fast"):
        command = ["node", str(tmp_path / "generate.mjs"), str(models[name]), "The 🦊quick"]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        backend = OnnxBackend(models[name])
        ids = engine_ids(backend, "The 🦊quick", backend.max_seq_len - 11, Sampling(temperature=0))
        assert output.removesuffix("\n").startswith(f"The quick{backend.tokenizer.decode(ids)}")
