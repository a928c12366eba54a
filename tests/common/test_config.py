import pytest
from conftest import ROOT

from minigpt.common.config import load_params
from minigpt.common.errors import UserError

PARAMS = (ROOT / "params.yaml").read_text()


def test_default_params_are_valid():
    assert load_params(ROOT / "params.yaml").train.learning_rate == 7e-3


def test_warmup_and_decay_exceeding_the_training_are_rejected(tmp_path):
    path, text = tmp_path / "params.yaml", (ROOT / "params.yaml").read_text()
    text = text.replace("schedule: linear", "schedule: wsd")
    path.write_text(text.replace("warmup_fraction: 0.1", "warmup_fraction: 0.5"))
    message = r"warmup_fraction \(0.5\) and decay_fraction \(0.6\) exceed 1 together"
    with pytest.raises(UserError, match=message):
        load_params(path)


def test_params_are_immutable():
    params = load_params(ROOT / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        params.train.seed = 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "d_model: 128",
            "d_modle: 128",
            "model.d_modle: unknown key; remove it or correct its name",
        ),
        ("d_model: 128", "d_model: 128\n  extra: 1", "model.extra: unknown key"),
        (
            "d_model: 128",
            "d_model: '128'",
            "model.d_model: Input should be a valid integer, but it is '128'",
        ),
        ("d_model: 128", "d_model: true", "model.d_model: Input should be a valid integer"),
        (
            "d_model: 128",
            "d_model: -128",
            "model.d_model: Input should be greater than 0, but it is -128",
        ),
        (
            "d_model: 128",
            "d_model:",
            "model.d_model: Input should be a valid integer, but it is None",
        ),
        (
            "num_heads: 4",
            "num_heads: 5",
            r"model.num_heads: must divide d_model \(128\), but it is 5",
        ),
        ("dropout: 0.0", "dropout: 1.0", "model.dropout: Input should be less than 1"),
        ("learning_rate: 7e-3", "learning_rate: .nan", "train.learning_rate: .*finite"),
        ("learning_rate: 7e-3", "learning_rate: .inf", "train.learning_rate: .*finite"),
        ("learning_rate: 7e-3", "learning_rate: 0", "train.learning_rate: .*greater than 0"),
        (
            "learning_rate: 7e-3",
            "learning_rate: 1e-5",
            r"train: min_learning_rate \(0.0001\) exceeds learning_rate",
        ),
        (
            "decay_fraction: 0.6",
            "decay_fraction: 1.5",
            "train.decay_fraction: .*less than or equal to 1",
        ),
        (
            "max_steps: 2000",
            "max_steps: null",
            "train: max_steps and max_epochs are both null; set one",
        ),
        (
            "init_from: pretrained/none",
            "init_from: models/x.safetensors",
            "train.init_from: must be a file in pretrained/",
        ),
        (
            "positional: sinusoidal",
            "positional: polar",
            "model.positional: Input should be 'sinusoidal', 'learned' or 'rotary'",
        ),
        (
            "layout: packed",
            "layout: loose",
            "train.layout: Input should be 'packed' or 'padded', but it is 'loose'",
        ),
        ("val_fraction: auto", "val_fraction: 1.5", "data.val_fraction: "),
        (
            "vocab_size: 1024",
            "vocab_size: 259",
            "tokenizer.vocab_size: .*greater than or equal to 260, but it is 259",
        ),
        (
            "type: char",
            "type: word",
            "tokenizer.type: Input should be 'char', 'bpe' or 'pretrained', but it is 'word'",
        ),
        (
            "lowercase: false",
            "lowercase: 1",
            "tokenizer.lowercase: Input should be a valid boolean",
        ),
        (
            "normalization: NFC",
            "normalization: nfc",
            "data.normalization: Input should be 'NFC', .*, but it is 'nfc'",
        ),
        (
            "  seed: 0                     # random seed of initial",
            "  # ",
            "train.seed: missing; add it",
        ),
        ("export:", "exprot:", r"exprot: unknown key; .*also wrong: export"),
        ("model:", "model: {", "not valid YAML: "),
        ("model:", f"model: {'[' * 2000}", "not valid YAML: nested too deeply"),
        ("d_model: 128", "d_model: 128\n  d_model: 64", "not valid YAML: .*duplicate key"),
        ("d_model: 128", f"d_model: 1{'0' * 400}", "model.d_model: Input should be less than"),
        ("d_model: 128", f"d_model: 1{'0' * 5000}", "Exceeds the limit .* line 25"),
        (
            "d_model: 128",
            "d_model: !!python/object:os.system x",
            "not valid YAML: .*the tag .*line 25",
        ),
        ("d_model: 128", "d_model: !mine 3", "not valid YAML: .*the tag '!mine'.* line 25"),
        ("d_model: 128", "d_model: !!bool x", "not valid YAML: .* line 25"),  # KeyError
        ("d_model: 128", "d_model: !!int ''", "not valid YAML: .* line 25"),  # IndexError
        ("d_model: 128", "d_model: 2001-99-99", "not valid YAML: month must be in .* line 25"),
        ("max_epochs: null", "max_epochs: 1e308", "train.max_epochs: Input should be less than or"),
        ("max_epochs: null", "max_epochs: 1e309", "train.max_epochs: .* finite number"),
        ("max_epochs: null", f"max_epochs: 1{'0' * 400}", "train.max_epochs: .* valid number"),
        ("processes: 1 ", "processes: 10000 ", "train.processes: .* less than or equal to 1024"),
        (
            "init_from: pretrained/none",
            'init_from: "pretrained/\\0"',
            "train.init_from: must not contain",
        ),
        ("threads: 2 ", "threads: 0 ", "threads: .*greater than 0"),
        ("threads: 2 ", "threads: all ", "threads: Input should be 'auto' or .*, but it is 'all'"),
        ("path: data/raw/tales.txt", 'path: "a\\0b"', "data.path: must not contain a NUL"),
        ('pattern: "*"', 'pattern: "a\\0b"', "data.pattern: must not contain a NUL"),
    ],
)
def test_params_error_is_one_line_that_names_the_key(tmp_path, old, new, message):
    path = tmp_path / "params.yaml"
    assert old in PARAMS
    path.write_text(PARAMS.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as error:
        load_params(path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "content",
    [
        *["", "- a\n", "text", "data: 1", "1: 2", "? [a]\n: b", "? {a: 1}\n: b", "&a {data: *a}"],
        *["caf\xe9: 1", "\0", "{a: " * 3000, "- " * 5000, "a: 1\n---\nb: 2"],
    ],
)
def test_file_without_sections_is_rejected(tmp_path, content):
    path = tmp_path / "params.yaml"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"params\.yaml: "):
        load_params(path)


def test_folder_in_place_of_params_is_rejected(tmp_path):
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load_params(tmp_path)


def test_missing_params_file_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"params\.yaml: not found"):
        load_params(tmp_path / "params.yaml")
