"""minigpt-cli as a user runs it: a process, its output, its exit code."""

import csv
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, build_model, model_metadata

FOX = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def models(trained, tokenizer, sentences, tmp_path_factory):
    """A folder with models/minigpt.onnx and models/minigpt.safetensors, as `dvc repro` leaves them."""
    from minigpt.data.ngram_table import build_draft
    from minigpt.export.onnx_graph import to_onnx
    from minigpt.model.checkpoint import save

    folder = tmp_path_factory.mktemp("cli")
    ids = np.concatenate([tokenizer.encode_array(text) for text in sentences])
    metadata = model_metadata(
        trained.model,
        tokenizer,
        parameters=123,
        draft=build_draft(ids, 40).to_text(),
        training={"val/loss": 0.25},
    )
    (folder / "models").mkdir()
    (folder / "models/minigpt.onnx").write_bytes(to_onnx(trained.model, metadata))
    save(folder / "models/minigpt.safetensors", trained.model.state_dict(), metadata)
    return folder


@pytest.fixture
def cli(models):
    def run(
        *args: str, code: int = 0, stdin: str = "", cwd=models
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "minigpt.cli.app", *args]
        result = subprocess.run(
            command, cwd=cwd, input=stdin, capture_output=True, text=True, timeout=120
        )
        assert result.returncode == code, result
        return result

    return run


def test_both_backends_continue_the_prompt_with_the_same_text(cli):
    texts = [
        cli("generate", "--backend", name, "--prompt", "The", "--seed", "3").stdout
        for name in ("torch", "onnx")
    ]
    assert texts[0] == texts[1]
    assert texts[0].startswith("The")
    assert cli("generate", "--greedy", "-p", "The quick brown").stdout == FOX + "\n"
    assert cli("generate", "--temperature", "0", "-p", "The quick brown").stdout == FOX + "\n"


def test_the_prompt_can_come_through_a_pipe(cli):
    assert cli("generate", "--greedy", stdin="The quick brown\n").stdout == FOX + "\n"
    assert cli("generate", "--greedy", "--prompt", "").stdout.strip()


def test_json_and_several_samples(cli):
    command = [
        "generate",
        "-p",
        "The",
        "-n",
        "3",
        "--seed",
        "5",
        "--temperature",
        "2",
        "--max-new-tokens",
        "20",
    ]
    results = [json.loads(line) for line in cli(*command, "--json").stdout.splitlines()]
    assert [result["sample"] for result in results] == [0, 1, 2]
    assert len({result["text"] for result in results}) == 3
    assert all(result["prompt"] == "The" and result["tokens"] <= 20 for result in results)
    plain = "\n---\n".join("The" + result["text"] for result in results) + "\n"
    assert cli(*command, "--stream").stdout == cli(*command, "--no-stream").stdout == plain
    greedy = json.loads(cli("generate", "-p", "The quick brown", "--greedy", "--json").stdout)
    assert greedy["finish_reason"] == "eos"


def test_speculation_changes_nothing(cli):
    command = ["generate", "-p", "The", "--temperature", "1.5", "--ignore-eos"]
    assert cli(*command, "--speculate").stdout == cli(*command, "--no-speculate").stdout


def test_the_example_needs_nothing_of_minigpt(models):
    """The documented inputs and outputs are enough."""
    command = [
        sys.executable,
        "-I",
        str(ROOT / "examples/generate.py"),
        "models/minigpt.onnx",
        "The quick brown",
    ]
    result = subprocess.run(command, cwd=models, capture_output=True, text=True, check=True)
    assert result.stdout == FOX + "\n"
    source = (ROOT / "examples/generate.py").read_text()
    assert "import minigpt" not in source
    assert "from minigpt" not in source


def test_prompts_of_a_file_are_continued_line_by_line(cli, tmp_path):
    (tmp_path / "prompts.txt").write_text("The quick brown\n\nThe\n")
    options = ["--seed", "5", "--temperature", "2", "--max-new-tokens", "20"]
    lines = cli(
        "generate", "--prompts-file", f"{tmp_path}/prompts.txt", "-n", "2", *options
    ).stdout.splitlines()
    results = [json.loads(line) for line in lines]
    assert [(result["prompt"], result["sample"]) for result in results] == [
        (prompt, sample) for prompt in ("The quick brown", "", "The") for sample in range(2)
    ]
    for result in results[::2]:
        assert result == json.loads(
            cli("generate", "-p", result["prompt"], *options, "--json").stdout
        )
    assert (
        "none.txt: cannot be read" in cli("generate", "--prompts-file", "none.txt", code=1).stderr
    )


def test_stop_and_log_probabilities(cli):
    command = [
        "generate",
        "-p",
        "The quick brown",
        "--greedy",
        "--stop",
        " lazy",
        "--stop",
        "jumping",
    ]
    assert cli(*command).stdout == "The quick brown fox jumps over the\n"
    result = json.loads(cli(*command, "--json", "--logprobs").stdout)
    assert result["finish_reason"] == "stop"
    assert "".join(piece for piece, _ in result["logprobs"]) == " fox jumps over the lazy"
    assert all(-5 < logprob <= 0 for _, logprob in result["logprobs"])


def test_ctrl_c_leaves_what_was_written(models):
    command = [
        sys.executable,
        "-m",
        "minigpt.cli.app",
        "generate",
        "-p",
        "The",
        "--ignore-eos",
        "--temperature",
        "2",
    ]
    whole = subprocess.run(command, cwd=models, capture_output=True, text=True, check=True).stdout
    endless = [*command, "--max-new-tokens", "100000000"]
    with subprocess.Popen(
        endless, cwd=models, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        start = process.stdout.read(100)  # comes while the text is being written
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert whole.startswith(start)
    assert rest.endswith("\n")


def test_terminal_sequences_are_shown_not_executed(cli):
    options = ["-p", "\x1b[2Ja\u202eb\tc", "--max-new-tokens", "3"]
    assert cli("generate", *options).stdout.startswith("\\x1b[2Ja\\u202eb\tc")
    assert cli("generate", *options, "--no-stream").stdout.startswith("\\x1b[2Ja\\u202eb\tc")
    assert cli("generate", *options, "--raw").stdout.startswith("\x1b[2Ja\u202eb\tc")


def test_unknown_characters_give_one_warning_and_text_all_the_same(cli):
    result = cli("generate", "-p", "ZéZ fox\x1b", "--max-new-tokens", "3")
    assert result.stderr.count("\n") == 1
    assert "read as <unk>: '\\x1b', 'Z', 'é'" in result.stderr


def test_a_megabyte_of_prompt(cli):
    result = cli(
        "generate",
        "--greedy",
        "--json",
        stdin="the fox " * 131072,
    )
    assert json.loads(result.stdout)["tokens"] >= 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--temperature", "-1"],
            "temperature: must be a number of 0 (greedy) or more, but it is -1.0",
        ),
        (
            ["--temperature", "nan"],
            "temperature: must be a number of 0 (greedy) or more, but it is nan",
        ),
        (["--max-new-tokens", "0"], "max-new-tokens: must be 1 or more, but it is 0"),
        (["--top-k", "0"], "top-k: must be 1 or more, but it is 0"),
        (["--seed", "-1"], "seed: must be from 0 to 2^63 - 1, but it is -1"),
        (["--num-samples", "0"], "num-samples: must be 1 or more, but it is 0"),
        (["--greedy", "--temperature", "1"], "greedy: means temperature 0"),
        (["--top-p", "0"], "top-p: must be above 0 and at most 1, but it is 0.0"),
        (["--stop", ""], "stop: must not be empty"),
        (["--logprobs"], "logprobs: needs JSON output; add --json"),
        (["--prompts-file", "a.txt"], "prompts-file: cannot be combined with --prompt"),
        (
            ["--model", "none.onnx"],
            "none.onnx: no such model; run `dvc repro` to train one, or name another",
        ),
        (
            ["--model", "none.safetensors"],
            "none.safetensors: no such model; run `dvc repro` to train one",
        ),
        (
            ["--model", "model.txt"],
            "model.txt: not a model file; it must end in .onnx or .safetensors",
        ),
        (
            ["--backend", "torch", "--model", "a.onnx"],
            "a.onnx: the torch backend cannot read .onnx files",
        ),
    ],
)
def test_a_mistake_is_one_line(cli, args, message):
    result = cli("generate", "--prompt", "a", *args, code=1)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_top_k_above_the_vocabulary_means_all(cli):
    texts = {
        cli("generate", "-p", "T", "--top-k", k, "--temperature", "3").stdout
        for k in ("40", "10000")
    }
    assert len(texts) == 1


def test_without_a_model_it_says_how_to_make_one(cli, tmp_path):
    for backend in ("torch", "onnx"):
        result = cli("generate", "--backend", backend, "-p", "a", code=1, cwd=tmp_path)
        assert "run `dvc repro`" in result.stderr
        assert result.stderr.count("\n") == 1


def test_score_of_files_and_lines(cli, tmp_path):
    (tmp_path / "known.txt").write_text(FOX + "\n" + FOX + "\n")
    (tmp_path / "unknown.txt").write_text("xqj zvw kkk")
    files = [str(tmp_path / "known.txt"), str(tmp_path / "unknown.txt")]
    rows = [
        json.loads(line) for line in cli("score", *files, "--lines", "--json").stdout.splitlines()
    ]
    assert [(row["file"], row["line"]) for row in rows] == [
        *((files[0], line) for line in (None, 1, 2)),
        *((files[1], line) for line in (None, 1)),
    ]
    assert rows[0]["tokens"] == rows[1]["tokens"] + rows[2]["tokens"] == 90
    assert rows[1]["loss"] < 1 < rows[3]["loss"]
    torch_rows = [
        json.loads(line)
        for line in cli("score", *files, "--json", "-b", "torch").stdout.splitlines()
    ]
    assert torch_rows[0]["loss"] == pytest.approx(rows[0]["loss"], abs=1e-5)
    table = list(csv.DictReader(io.StringIO(cli("score", files[0], "--csv").stdout)))
    assert float(table[0]["bits_per_char"]) == rows[0]["bits_per_char"]
    assert cli("score", "-", stdin=FOX).stdout.splitlines()[1].split()[1:3] == ["45", "44"]
    assert "none.txt: cannot be read: No such file" in cli("score", "none.txt", code=1).stderr
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    assert "latin: not UTF-8 text at byte 3" in cli("score", f"{tmp_path}/latin", code=1).stderr


def test_bench_measures_both_backends(cli):
    rows = [
        json.loads(line)
        for line in cli("bench", "--rounds=1", "--max-new-tokens=9", "--json").stdout.splitlines()
    ]
    assert {row["model"] for row in rows} == {"models/minigpt.onnx", "models/minigpt.safetensors"}
    assert {row["texts"] for row in rows} == {1, 16}
    assert all(row["tokens_per_second"] > 0 and row["tokens_per_pass"] >= 1 for row in rows)
    assert [row["acceptance_rate"] is not None for row in rows].count(True) == 2
    assert "rounds: must be 1 or more" in cli("bench", "--rounds", "0", code=1).stderr


def test_chat_through_a_pipe(cli):
    lines = [
        "The quick brown",
        "/regenerate",
        "/set temperature 0",
        "/regenerate",
        "/set max_new_tokens 4",
        "I",
    ]
    first, again, end, *others = cli("chat", "--seed", "3", stdin="\n".join(lines)).stdout.split(
        "(the end)\n"
    )
    generated = cli("generate", "-p", "The quick brown", "--seed", "3", "-n", "2").stdout
    assert f"The quick brown{first}---\nThe quick brown{again}" == generated
    assert end == FOX.removeprefix("The quick brown") + "\n"
    assert len(others) == 1
    said = cli(
        "chat",
        stdin="/set\n/set a 1\n/set top_k x\n/seed -1\n/nothing\n/regenerate\n/help\n/quit\nno",
    ).stdout
    for words in (
        "temperature 0.8",
        "/set: needs one of temperature, top_k",
        "top_k: must be a whole number, but it is x",
        "seed: must be from 0",
        "/nothing: no such command",
        "/regenerate: nothing to replace yet",
        "as does Ctrl-D",
    ):
        assert words in said
    assert (
        "max-new-tokens: must be 1 or more" in cli("chat", "--max-new-tokens", "0", code=1).stderr
    )


def test_chat_at_a_terminal(models):
    terminal, side = pty.openpty()
    command = [sys.executable, "-m", "minigpt.cli.app", "chat", "--temperature", "0"]
    process = subprocess.Popen(command, cwd=models, stdin=side, stdout=side, stderr=side)
    try:
        read_until(terminal, b"> ")
        os.write(terminal, b"The quick brown\n")
        assert b" fox jumps over the lazy dog." in read_until(terminal, b"(the end)")
        read_until(terminal, b"> ")
        for setting in (b"max_new_tokens 100000000", b"ignore_eos true"):
            os.write(terminal, b"/set " + setting + b"\n")
            read_until(terminal, b"> ")
        os.write(terminal, b"The quick brown\n")
        read_until(terminal, b" lazy dog.")
        process.send_signal(signal.SIGINT)  # ends the text, not the session
        read_until(terminal, b"> ")
        os.write(terminal, b"\x04")  # Ctrl-D
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
        os.close(side)


def read_until(terminal: int, words: bytes) -> bytes:
    seen = b""
    while words not in seen:
        assert select.select([terminal], [], [], 30)[0], seen
        seen += os.read(terminal, 1)
    return seen


@pytest.mark.parametrize("name", ["models/minigpt.onnx", "models/minigpt.safetensors"])
def test_info_shows_what_a_file_holds(cli, name):
    values = json.loads(cli("info", "--model", name, "--json").stdout)
    assert values["config"]["d_model"] == 64
    assert values["training"] == {"val/loss": 0.25}
    assert len(values["vocabulary"]["characters"]) == 36
    assert (values["vocabulary"]["type"], values["vocabulary"]["size"]) == ("char", 40)
    assert "d_model: 64" in cli("info", "--model", name).stdout


def test_version_and_help(cli):
    assert cli("--version").stdout.startswith("minigpt 0.")
    for command in ([], ["generate"], ["chat"], ["score"], ["bench"], ["info"], ["fetch"]):
        assert "Usage:" in cli(*command, "--help").stdout


def loaded_by_generating(folder) -> set[str]:
    """The packages that `generate --backend onnx` has loaded at its end."""
    code = (
        "import sys\nfrom minigpt.cli.app import app\n"
        "app(['generate', '--backend', 'onnx', '--prompt', 'The', '--max-new-tokens', '5'], standalone_mode=False)\n"
        "print('\\n'.join(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in result.stdout.splitlines()}


def test_generating_with_onnx_loads_no_heavy_package(models):
    loaded = loaded_by_generating(models)
    assert "onnxruntime" in loaded
    assert not loaded & {
        "torch",
        "pandas",
        "mlflow",
        "onnx",
        "pydantic",
        "dvc",
        "rich",
        "safetensors",
        "tokenizers",
    }


@pytest.fixture(scope="module")
def bpe_models(tmp_path_factory):
    """An untrained BPE model, whose every token is a byte."""
    import torch

    from minigpt.export.onnx_graph import to_onnx
    from minigpt.model.checkpoint import save
    from minigpt.tokenizer import BPETokenizer

    folder = tmp_path_factory.mktemp("bpe")
    sizes = {"d_model": 16, "num_heads": 2, "num_layers": 1, "d_ff": 32, "max_seq_len": 32}
    torch.manual_seed(0)
    model = build_model(260, **sizes).eval()
    metadata = model_metadata(model, BPETokenizer(normalization="NFC"))
    (folder / "models").mkdir()
    (folder / "models/minigpt.onnx").write_bytes(to_onnx(model, metadata))
    save(folder / "models/minigpt.safetensors", model.state_dict(), metadata)
    return folder


def test_a_bpe_model_generates_and_tells_of_itself(cli, bpe_models):
    command = [
        "generate",
        "-p",
        "naïve 🦊",
        "--max-new-tokens",
        "30",
        "--top-k",
        "260",
        "--seed",
        "1",
    ]
    texts = {
        cli(*command, *more, cwd=bpe_models).stdout
        for more in ([], ["--no-stream"], ["--backend", "torch"])
    }
    assert len(texts) == 1
    assert texts.pop().startswith("naïve 🦊")
    for name in ("onnx", "torch"):
        values = json.loads(cli("info", "--backend", name, "--json", cwd=bpe_models).stdout)
        assert values["vocabulary"] == {
            "type": "bpe",
            "size": 260,
            "normalization": "NFC",
            "lowercase": False,
        }
        assert "tokenizer" not in values


def test_generating_with_a_bpe_model_loads_one_package_more(bpe_models):
    loaded = loaded_by_generating(bpe_models)
    assert "tokenizers" in loaded
    assert not loaded & {
        "torch",
        "pandas",
        "mlflow",
        "onnx",
        "pydantic",
        "dvc",
        "rich",
        "safetensors",
    }
