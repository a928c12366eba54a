"""minigpt-cli: options, output, messages and exit codes of every command."""

import csv
import hashlib
import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import ROOT, build_model, model_metadata

from minigpt.cli.app import main
from minigpt.cli.chat import joined
from minigpt.export.onnx_graph import to_onnx
from minigpt.model.checkpoint import save
from minigpt.tokenizer import BPETokenizer
from minigpt.training.ngram import build_ngram_table

COMMAND = [sys.executable, "-m", "minigpt.cli"]
FOX = "The quick brown fox jumps over the lazy dog."  # the model has memorized this sentence
VARIED = ["--seed", "5", "--temperature", "2", "--max-new-tokens", "20"]


def write_models(folder: Path, model: Any, metadata: dict[str, Any]) -> Path:
    """Write both model files where `dvc repro` would, and return `folder`."""
    (folder / "models").mkdir()
    (folder / "models/minigpt.onnx").write_bytes(to_onnx(model, metadata))
    save(folder / "models/minigpt.safetensors", model.state_dict(), metadata)
    return folder


@pytest.fixture(scope="module")
def models(trained, tokenizer, sentences, tmp_path_factory):
    """Return a folder with both files of a model that knows the sentences corpus."""
    ids = np.concatenate([tokenizer.encode_array(text) for text in sentences])
    table = build_ngram_table(ids, tokenizer.vocab_size).to_text()
    metadata = model_metadata(
        trained.model, tokenizer, parameters=123, ngram_table=table, training={"val/loss": 0.25}
    )
    return write_models(tmp_path_factory.mktemp("cli"), trained.model, metadata)


@pytest.fixture(scope="module")
def bpe_models(tmp_path_factory):
    """Return a folder with both files of an untrained model whose tokens are bytes."""
    sizes = {"d_model": 16, "num_heads": 2, "num_layers": 1, "d_ff": 32, "max_seq_len": 32}
    model = build_model(260, **sizes).eval()
    metadata = model_metadata(model, BPETokenizer(normalization="NFC"))
    return write_models(tmp_path_factory.mktemp("bpe"), model, metadata)


class Result(NamedTuple):
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def cli(models, monkeypatch, capsys):
    """Run a command in this process, which takes a tenth of the time of a new one."""

    def run(*args: str, code: int = 0, stdin: str = "", cwd: Path = models) -> Result:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["minigpt-cli", *args])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        if isinstance(end.value.code, str):  # a message, which Python prints when it exits with 1
            assert code == 1
            return Result(out, f"{err}{end.value.code}\n")
        assert end.value.code == code
        return Result(out, err)

    return run


def test_version_is_printed(cli):
    assert cli("--version").out.startswith("minigpt 0.")


@pytest.mark.parametrize(
    "command", ["", "generate", "chat", "score", "serve", "bench", "info", "fetch"]
)
def test_help_is_printed(cli, command):
    assert "Usage:" in cli(*command.split(), "-h").out


def test_error_is_one_line_without_traceback(models):
    command = [*COMMAND, "generate", "--top-k", "-1"]
    result = subprocess.run(command, cwd=models, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == "minigpt-cli: top-k: must be 0 (all) or more, but it is -1\n"
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--temperature", "-1"], "temperature: must be a number of 0 (greedy) or more"),
        (["--temperature", "nan"], "temperature: must be a number of 0 (greedy) or more"),
        (["--max-new-tokens", "0"], "max-new-tokens: must be 1 or more, but it is 0"),
        (["--top-p", "0"], "top-p: must be above 0 and at most 1, but it is 0.0"),
        (["--seed", "-1"], "seed: must be from 0 to 2^63 - 1, but it is -1"),
        (["--num-samples", "0"], "num-samples: must be from 1 to 100000, but it is 0"),
        (["--num-samples", "9" * 20], "num-samples: must be from 1 to 100000, but it is 99999999"),
        (["--greedy", "--temperature", "0.8"], "greedy: means temperature 0"),
        (["--stop", ""], "stop: must not be empty"),
        (["--logprobs"], "logprobs: needs JSON output; add --json"),
        (["--prompts-file", "a.txt"], "prompts-file: cannot be combined with --prompt"),
        (["--model", "none.onnx"], "none.onnx: no such model; run `dvc repro`"),
        (["--model", "none.safetensors"], "none.safetensors: no such model; run `dvc repro`"),
        (["--model", "model.txt"], "model.txt: not a model file; it must end in .onnx or"),
        (["--model", ""], ".: not a model file; it must end in .onnx or .safetensors"),
        (["-b", "torch", "-m", "a.onnx"], "a.onnx: the torch backend cannot read .onnx files"),
    ],
)
def test_wrong_option_gives_one_line(cli, args, message):
    result = cli("generate", "--prompt", "a", *args, code=1)
    assert result.err.startswith(f"minigpt-cli: {message}")
    assert result.err.count("\n") == 1
    assert result.out == ""


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_missing_default_model_names_the_remedy(cli, tmp_path, backend):
    result = cli("generate", "--backend", backend, "-p", "a", code=1, cwd=tmp_path)
    assert "models/minigpt." in result.err
    assert "run `dvc repro` to train one" in result.err


def test_model_without_digest_gives_one_warning(cli, tmp_path):
    older = ROOT / "tests/model/older_files/classic.onnx"
    result = cli("generate", "-p", "a", "-m", str(older), "--seed", "1")
    assert result.err.count("\n") == 1
    assert "classic.onnx: contains no SHA-256" in result.err


def test_exchanged_model_gives_one_warning(cli, models, tmp_path):
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    (tmp_path / "reports").mkdir()
    model = (tmp_path / "models/minigpt.onnx").read_bytes()
    for sha256, warnings in ((hashlib.sha256(model).hexdigest(), 0), ("0" * 64, 1)):
        (tmp_path / "reports/export.json").write_text(json.dumps({"sha256": sha256}))
        result = cli("generate", "-p", "The", "--seed", "1", cwd=tmp_path)
        assert result.err.count("not the file in reports/export.json") == warnings
        assert result.err.count("\n") == warnings


def test_quantized_form_of_an_earlier_model_is_refused(cli, trained, tokenizer, tmp_path):
    quantization = {"type": "int8", "block_size": 64, "source_sha256": "1" * 64}
    metadata = model_metadata(trained.model, tokenizer, quantization=quantization)
    for folder in ("models", "reports"):
        (tmp_path / folder).mkdir()
    file = tmp_path / "models/minigpt.int8.onnx"
    file.write_bytes(to_onnx(trained.model, metadata, "int8"))
    for sha256, code in (("1" * 64, 0), ("2" * 64, 1)):
        (tmp_path / "reports/export.json").write_text(json.dumps({"sha256": sha256}))
        result = cli("info", "-m", "models/minigpt.int8.onnx", code=code, cwd=tmp_path)
        assert ("made from another model than models/minigpt.onnx" in result.err) == bool(code)
        assert result.err.count("\n") == code


# generate


def test_backends_generate_the_same_text(cli):
    command = ["generate", "--prompt", "The", "--seed", "3", "--backend"]
    assert cli(*command, "torch").out == cli(*command, "onnx").out


@pytest.mark.parametrize(
    "options", [["--greedy"], ["--temperature", "0"], ["--greedy", "--temperature", "0"]]
)
def test_greedy_is_temperature_0(cli, options):
    assert cli("generate", "-p", "The quick brown", *options).out == FOX + "\n"


def test_prompt_can_be_piped(cli):
    assert cli("generate", "--greedy", stdin="The quick brown\n").out == FOX + "\n"


def test_prompt_can_be_empty(cli):
    assert cli("generate", "--greedy", "--prompt", "").out.strip()


def test_prompt_can_be_a_megabyte(cli):
    (row,) = cli("generate", "--greedy", "--json", stdin="the fox " * 131072).rows
    assert row["tokens"] >= 1


def test_samples_of_a_prompt_differ(cli):
    rows = cli("generate", "-p", "The", "-n", "3", *VARIED, "--json").rows
    assert [row["sample"] for row in rows] == [0, 1, 2]
    assert len({row["text"] for row in rows}) == 3
    assert all(row["prompt"] == "The" and row["tokens"] <= 20 for row in rows)


@pytest.mark.parametrize("option", ["--stream", "--no-stream"])
def test_plain_output_has_the_texts_of_json(cli, option):
    command = ["generate", "-p", "The", "-n", "3", *VARIED]
    texts = ["The" + row["text"] for row in cli(*command, "--json").rows]
    assert cli(*command, option).out == "\n---\n".join(texts) + "\n"


@pytest.mark.parametrize(
    ("options", "reason"),
    [([], "eos"), (["--max-new-tokens", "3"], "length"), (["--stop", "lazy"], "stop")],
)
def test_json_has_the_finish_reason(cli, options, reason):
    (row,) = cli("generate", "-p", "The quick brown", "--greedy", "--json", *options).rows
    assert row["finish_reason"] == reason


def test_speculative_decoding_keeps_the_text(cli):
    command = ["generate", "-p", "The", "--temperature", "1.5", "--ignore-eos", "--seed", "1"]
    assert cli(*command, "--speculate").out == cli(*command, "--no-speculate").out


def test_each_line_of_a_prompts_file_is_continued(cli, tmp_path):
    (tmp_path / "prompts.txt").write_text("The quick brown\n\nThe\n")
    rows = cli("generate", "--prompts-file", f"{tmp_path}/prompts.txt", "-n", "2", *VARIED).rows
    assert [(row["prompt"], row["sample"]) for row in rows] == [
        (prompt, sample) for prompt in ("The quick brown", "", "The") for sample in range(2)
    ]
    for row in rows[::2]:  # the text does not depend on the other prompts
        assert cli("generate", "-p", row["prompt"], *VARIED, "--json").rows == [row]


def test_byte_order_mark_of_a_text_file_is_dropped(cli, tmp_path):
    (tmp_path / "prompts.txt").write_text("\ufeffThe\n")
    rows = cli("generate", "--prompts-file", f"{tmp_path}/prompts.txt").rows
    assert [row["prompt"] for row in rows] == ["The"]
    assert "<unk>" not in cli("score", f"{tmp_path}/prompts.txt").err


def test_byte_order_mark_of_a_prompt_is_dropped(cli):
    assert cli("generate", "-p", "\ufeffThe", "--greedy").out.startswith("The")
    chat = ["chat", "--seed", "1"]
    assert cli(*chat, stdin="\ufeffThe\n").out == cli(*chat, stdin="The\n").out


def test_home_folder_is_expanded_in_options(cli, models, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(models / "models/minigpt.onnx", tmp_path)
    (tmp_path / "a.txt").write_text("The")
    options = ["--prompts-file=~/a.txt", "--model=~/minigpt.onnx"]
    assert cli("generate", *options).rows[0]["prompt"] == "The"


def test_prompts_file_can_be_piped(cli):
    rows = cli("generate", "--prompts-file", "-", stdin="The\nA\n").rows
    assert [row["prompt"] for row in rows] == ["The", "A"]


def test_stop_sequence_is_not_printed(cli):
    command = ["generate", "-p", "The quick brown", "--greedy"]
    result = cli(*command, "--stop", " lazy", "--stop", "jumping")
    assert result.out == "The quick brown fox jumps over the\n"


def test_a_drawn_seed_is_printed(cli):
    command = ["generate", "-p", "The", "--temperature", "2"]
    first, second = cli(*command), cli(*command)
    assert first.err != second.err
    name, seed = first.err.split()
    assert name == "seed:"
    repeated = cli(*command, "--seed", seed)
    assert (repeated.out, repeated.err) == (first.out, "")


@pytest.mark.parametrize("option", ["--greedy", "--json"])
def test_no_seed_is_printed_where_it_says_nothing(cli, option):
    assert cli("generate", "-p", "The", option).err == ""


def test_logprobs_are_those_of_all_tokens(cli):
    command = ["generate", "-p", "The quick brown", "--greedy", "--stop", " lazy"]
    (row,) = cli(*command, "--json", "--logprobs").rows
    # the tokens of the stop sequence were generated too
    assert "".join(token for token, _ in row["logprobs"]) == " fox jumps over the lazy"
    assert all(-5 < logprob <= 0 for _, logprob in row["logprobs"])


@pytest.mark.parametrize("top_k", ["0", "10000"])
def test_top_k_of_0_or_many_keeps_all_tokens(cli, top_k):
    command = ["generate", "-p", "T", "--temperature", "3", "--seed", "1", "--top-k"]
    assert cli(*command, top_k).out == cli(*command, "40").out


@pytest.mark.parametrize("option", ["--stream", "--no-stream"])
def test_control_characters_are_escaped(cli, option):
    result = cli("generate", "-p", "\x1b[2Ja\u202eb\tc", "--max-new-tokens", "3", option)
    assert result.out.startswith("\\x1b[2Ja\\u202eb\tc")


def test_raw_output_is_not_escaped(cli):
    result = cli("generate", "-p", "\x1b[2Ja", "--max-new-tokens", "3", "--raw")
    assert result.out.startswith("\x1b[2Ja")


def test_unknown_characters_give_one_warning(cli):
    result = cli("generate", "-p", "ZéZ fox\x1b", "--max-new-tokens", "3", "--greedy")
    assert result.err.count("\n") == 1
    assert "read as <unk>: '\\x1b', 'Z', 'é'" in result.err


def test_ctrl_c_keeps_the_generated_text(models):
    command = [*COMMAND, "generate", "-p", "The", "--ignore-eos", *VARIED[:4]]
    complete = subprocess.run(command, cwd=models, capture_output=True, text=True, check=True)
    endless = [*command, "--max-new-tokens", "100000000"]
    with subprocess.Popen(
        endless, cwd=models, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        start = process.stdout.read(100)  # arrives while the text is being generated
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert complete.stdout.startswith(start)
    assert rest.endswith("\n")


def test_bpe_tokens_are_joined_to_characters(cli, bpe_models):
    command = ["generate", "-p", "naïve 🦊", "--max-new-tokens", "30", "--top-k", "0"]
    command += ["--seed", "1"]
    texts = {
        cli(*command, *options, cwd=bpe_models).out
        for options in ([], ["--no-stream"], ["--backend", "torch"])
    }
    assert len(texts) == 1
    assert texts.pop().startswith("naïve 🦊")


def packages_loaded_by_generate(folder: Path) -> set[str]:
    code = (
        "import sys\nfrom minigpt.cli.app import app\n"
        "app(['generate', '-b', 'onnx', '-p', 'The'], standalone_mode=False)\n"
        "print('\\n'.join(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in result.stdout.splitlines()}


HEAVY = {"torch", "pandas", "mlflow", "onnx", "pydantic", "dvc", "rich", "safetensors"}
HEAVY |= {"starlette", "uvicorn", "prometheus_client"}


@pytest.mark.parametrize(
    ("package", "args", "install"),
    [
        ("tokenizers", "generate -p a", "tokenizers"),
        ("torch", "info -b torch", "'.[pipeline]'"),
        ("pooch", "fetch names", "'pooch[progress]'"),
    ],
)
def test_missing_packages_are_named(bpe_models, tmp_path, package, args, install):
    folder = shutil.copytree(bpe_models, tmp_path / "project")
    code = f"import sys; sys.modules[{package!r}] = None; sys.argv[1:] = {args.split()}\n"
    code += "from minigpt.cli.app import main; main()"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    message = f"minigpt-cli: {package}: package not installed; run `pip install {install}`"
    assert result.stderr.startswith(message)


def test_generation_with_onnx_loads_no_heavy_package(models):
    packages = packages_loaded_by_generate(models)
    assert "onnxruntime" in packages
    assert not packages & {*HEAVY, "tokenizers"}


def test_bpe_needs_only_the_tokenizers_package(bpe_models):
    packages = packages_loaded_by_generate(bpe_models)
    assert "tokenizers" in packages
    assert not packages & HEAVY


def run_example(folder: Path, *args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-I", str(ROOT / "examples/generate.py"), *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_example_script_generates_subwords(cli, bpe_models):
    prompt = "naïve 🦊"
    options = ["--greedy", "--raw", "--max-new-tokens", "20"]
    expected = cli("generate", "-p", prompt, *options, cwd=bpe_models)
    # both end with the window of 32: <bos>, 11 bytes and 20 generated tokens
    result = run_example(bpe_models, "models/minigpt.onnx", prompt)
    assert (result.stdout, result.stderr) == (expected.out, "")


def test_example_script_prints_its_usage(models):
    result = run_example(models)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("usage: python examples/generate.py models/minigpt.onnx")


def test_example_script_needs_no_minigpt(models):
    script = ROOT / "examples/generate.py"
    assert run_example(models, "models/minigpt.onnx", "The quick brown").stdout == FOX + "\n"
    assert "import minigpt" not in script.read_text()
    assert "from minigpt" not in script.read_text()


@pytest.mark.parametrize("command", ["generate -p a --greedy", "info"])
def test_a_full_disk_behind_stdout_is_one_line(models, command):
    with open("/dev/full", "w") as full:
        result = run_in_process(models, *command.split(), stdout=full)
    assert result.returncode == 1
    assert result.stderr.startswith("minigpt-cli: standard output: cannot be used (No space left")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["chat", "score -"])
def test_closed_standard_input_is_one_line(models, command):
    result = run_in_process(models, *command.split(), preexec_fn=lambda: os.close(0))
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("minigpt-cli: standard input: closed")


def test_a_closed_pipe_ends_the_command_quietly(models):
    reader, writer = os.pipe()
    os.close(reader)
    result = run_in_process(models, "generate", "-p", "a", "--greedy", stdout=writer)
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, "")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_json_is_valid_in_any_encoding(models, encoding):
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    options = ["-p", "fox é 😀", "--max-new-tokens", "3"]
    result = run_in_process(models, "generate", *options, "--json", env=env, encoding=encoding)
    assert json.loads(result.stdout)["prompt"] == "fox é 😀"
    result = run_in_process(models, "generate", *options, env=env, encoding=encoding)
    assert result.stdout.startswith("fox ")
    assert result.returncode == 0


def run_in_process(folder: Path, *args: str, **options: Any) -> subprocess.CompletedProcess:
    """Run a command in a process of its own."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "encoding": "utf-8"}
    command = [*COMMAND, *args]
    return subprocess.run(
        command, cwd=folder, stderr=subprocess.PIPE, check=False, **{**streams, **options}
    )


# chat


def test_chat_continues_like_generate(cli):
    options = ["--seed", "3"]
    lines = "The quick brown\n/regenerate"
    first, second, rest = cli("chat", *options, stdin=lines).out.split("(the end)\n")
    expected = cli("generate", "-p", "The quick brown", "-n", "2", *options).out
    assert f"The quick brown{first}---\nThe quick brown{second}" == expected
    assert rest == ""


def test_chat_settings_apply_to_the_next_text(cli):
    lines = "/set temperature 0\n/set max_new_tokens 4\nThe quick brown"
    answers = "temperature 0.0\nmax_new_tokens 4\n"
    assert cli("chat", stdin=lines).out == f"{answers} fox\n"


def test_chat_extends_one_text(cli):
    lines = "/set temperature 0\n/set max_new_tokens 4\nThe quick brown\n jumps\n/text"
    assert cli("chat", stdin=lines).out.splitlines()[-1] == "The quick brown fox jumps ove"


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("", "The fox", "The fox"),
        ("The fox", "ran", "The fox ran"),
        ("The fox ran.", "It", "The fox ran. It"),
        ("The fox ran.\n", "It", "The fox ran.\nIt"),
        ("The fox", ", who", "The fox, who"),
        ('"Go," he said, "', "or", '"Go," he said, "or'),
        ('"Go!"', "he said", '"Go!" he said'),
        ("狐狸", "跑", "狐狸跑"),
    ],
)
def test_chat_separates_words(text, line, expected):
    assert joined(text, line) == expected


def test_new_text_of_chat_is_empty(cli):
    lines = "/set max_new_tokens 4\nThe quick brown\n/new\n/text"
    assert cli("chat", stdin=lines).out.splitlines()[-1] == ""


@pytest.mark.parametrize(
    ("line", "output"),
    [
        ("/set", "temperature 0.8\n"),
        ("/set top_k 0", "top_k 0\n"),
        ("/seed 7", "seed 7\n"),
        ("/new", "(a new text)\n"),
        ("/set a 1", "/set: needs one of temperature, top_k"),
        ("/set top_k x", "top_k: must be a whole number, but it is x"),
        ("/set ignore_eos 1", "ignore_eos: must be true or false, but it is 1"),
        ("/seed -1", "seed: must be from 0"),
        ("/unknown", "/unknown: no such command; /help lists them"),
        ("/regenerate", "/regenerate: nothing to replace yet"),
        ("/help", "/quit                quit, as does Ctrl-D"),
    ],
)
def test_chat_command_prints_its_result(cli, line, output):
    assert output in cli("chat", stdin=f"{line}\n/quit\nnot read").out


def test_wrong_option_ends_chat(cli):
    assert "max-new-tokens: must be 1" in cli("chat", "--max-new-tokens", "0", code=1).err


def test_chat_works_at_a_terminal(models):
    terminal, side = pty.openpty()
    command = [*COMMAND, "chat", "--temperature", "0"]
    process = subprocess.Popen(command, cwd=models, stdin=side, stdout=side, stderr=side)
    try:
        assert b"/help lists the commands." in read_until(terminal, b"> ")
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


# score


@pytest.fixture
def files(tmp_path) -> list[str]:
    """Return a sentence that the model has memorized, twice, and a text that it cannot predict."""
    (tmp_path / "known.txt").write_text(FOX + "\n" + FOX + "\n")
    (tmp_path / "unknown.txt").write_text("xqj zvw kkk")
    return [f"{tmp_path}/known.txt", f"{tmp_path}/unknown.txt"]


def test_score_has_a_row_per_file(cli, files):
    known, unknown = cli("score", *files, "--json").rows
    assert [known["file"], unknown["file"]] == files
    assert known["loss"] < unknown["loss"]


def test_scores_of_lines_follow_their_file(cli, files):
    rows = cli("score", *files, "--lines", "--json").rows
    assert [row["line"] for row in rows] == [None, 1, 2, None, 1]
    assert rows[0]["tokens"] == rows[1]["tokens"] + rows[2]["tokens"] == 90


def test_backends_give_the_same_score(cli, files):
    onnx, torch = (cli("score", *files, "--json", "-b", name).rows for name in ("onnx", "torch"))
    assert [row["loss"] for row in onnx] == pytest.approx([row["loss"] for row in torch], abs=1e-5)


def test_csv_has_the_figures_of_json(cli, files):
    (row,) = csv.DictReader(io.StringIO(cli("score", files[0], "--csv").out))
    assert float(row["bits_per_char"]) == cli("score", files[0], "--json").rows[0]["bits_per_char"]


def test_score_reads_standard_input(cli):
    _, row = cli("score", "-", stdin=FOX).out.splitlines()
    assert row.split()[:3] == ["-", "45", "44"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.txt", "none.txt: cannot be read: No such file"),
        ("latin.txt", "latin.txt: not UTF-8 text at byte 3; convert it first"),
        ("/dev/zero", "/dev/zero: a device; name a text file, or - for standard input"),
    ],
)
def test_unreadable_text_is_an_error(cli, tmp_path, name, message):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert message in cli("score", str(tmp_path / name), code=1).err


# bench


def test_bench_measures_all_cases_of_both_models(cli):
    rows = cli("bench", "--rounds=1", "--max-new-tokens=9", "--json").rows
    assert [(row["model"], row["texts"], row["drafting"]) for row in rows] == [
        (f"models/minigpt.{extension}", count, drafting)
        for extension in ("onnx", "safetensors")
        for count, drafting in ((1, False), (1, True), (16, False))
    ]
    for row in rows:
        assert row["tokens_per_second"] > 0
        assert (row["tokens_per_pass"] > 1) == row["drafting"]
        assert (row["acceptance_rate"] is not None) == row["drafting"]


def test_bench_needs_a_round(cli):
    assert "rounds: must be 1 or more" in cli("bench", "--rounds", "0", code=1).err


# info


@pytest.mark.parametrize("name", ["models/minigpt.onnx", "models/minigpt.safetensors"])
def test_info_describes_the_model(cli, name):
    (values,) = cli("info", "--model", name, "--json").rows
    assert values["config"]["d_model"] == 64
    assert values["training"] == {"val/loss": 0.25}
    assert len(values["vocabulary"]["characters"]) == 36
    assert (values["vocabulary"]["type"], values["vocabulary"]["size"]) == ("char", 40)


def test_info_prints_a_paragraph_per_section(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = cli("info").out.splitlines()
    assert lines[0].startswith("vocabulary  type char, size 40, normalization ")
    assert {"parameters  123", "training    val/loss 0.25"} <= set(lines)
    assert max(map(len, lines)) <= 60


def test_info_escapes_control_characters(cli, trained, tokenizer, tmp_path):
    evil = {"\x1b[2Jsection": {"\x1b[2Jkey": "\x1b[2Jvalue"}, "\x9bname": "\x9bvalue"}
    metadata = model_metadata(trained.model, tokenizer, **evil)
    out = cli("info", cwd=write_models(tmp_path, trained.model, metadata)).out
    assert "\\x1b[2Jsection  \\x1b[2Jkey '\\x1b[2Jvalue'" in out
    assert "\x1b" not in out
    assert "\x9b" not in out


def test_info_of_bpe_omits_the_merges(cli, bpe_models):
    (values,) = cli("info", "--json", cwd=bpe_models).rows
    expected = {"type": "bpe", "size": 260, "normalization": "NFC", "lowercase": False}
    assert values["vocabulary"] == expected
    assert "tokenizer" not in values
