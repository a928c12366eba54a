"""Validated parameters: the sections of params.yaml as frozen objects.

Loading validates the whole file, so a typo in `export` already fails in the first stage.
params.yaml explains each key and holds its default; types and ranges are defined here.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError, YAMLWarning

from minigpt.common.errors import UserError, one_line
from minigpt.common.files import read_errors
from minigpt.common.text import Normalization

PositiveInt = Annotated[int, Field(gt=0, lt=2**63)]
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**63)]
Threads = Literal["auto"] | Annotated[int, Field(gt=0, le=1024)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
NO_MODEL = "pretrained/none"  # as train.init_from; it exists, as a dependency of a stage must


def _check_path(path: str) -> str:
    if "\0" in path:
        raise ValueError("must not contain a NUL character")
    return path


FilePath = Annotated[str, Field(min_length=1), AfterValidator(_check_path)]


class Section(BaseModel):
    # strict: "128" is not a number and true is not 1
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataConfig(Section):
    path: FilePath
    pattern: FilePath
    format: Literal["auto", "text", "csv", "tsv", "jsonl", "parquet"]
    text_column: Annotated[str, Field(min_length=1)]
    documents: Literal["auto", "line", "blank_line", "file", "separator", "none"]
    separator: Annotated[str, Field(min_length=1)]
    deduplicate: bool
    normalization: Normalization
    invalid_utf8: Literal["error", "replace"]
    val_fraction: Literal["auto"] | Fraction


class TokenizerConfig(Section):
    type: Literal["char", "bpe", "pretrained"]
    # at least the 4 special tokens and 256 bytes
    vocab_size: Annotated[int, Field(ge=260, le=2**20)]
    min_freq: PositiveInt
    lowercase: bool


class ModelConfig(Section):
    d_model: PositiveInt
    num_heads: PositiveInt
    num_layers: PositiveInt
    d_ff: PositiveInt
    max_seq_len: Annotated[int, Field(ge=8, le=65536)]
    dropout: Fraction
    positional: Literal["sinusoidal", "learned", "rotary"]
    activation: Literal["relu", "gelu"]
    tied_head: bool
    head_bias: bool
    single_special_token: bool
    qk_norm: bool
    bigram_buckets: NonNegativeInt
    trigram_buckets: NonNegativeInt

    @field_validator("num_heads")
    @classmethod
    def num_heads_divides_d_model(cls, num_heads: int, info: ValidationInfo) -> int:
        d_model = info.data.get("d_model")
        if d_model is not None and d_model % num_heads:
            raise ValueError(f"must divide d_model ({d_model})")
        return num_heads

    @model_validator(mode="after")
    def rotary_needs_even_head_size(self) -> "ModelConfig":
        if self.positional == "rotary" and self.d_model // self.num_heads % 2:
            raise ValueError(
                "positional rotary needs an even d_model / num_heads "
                f"({self.d_model} / {self.num_heads})"
            )
        return self

    @model_validator(mode="after")
    def single_special_token_needs_tied_head(self) -> "ModelConfig":
        if self.single_special_token and not self.tied_head:
            raise ValueError("single_special_token true needs tied_head true")
        return self


class TrainConfig(Section):
    layout: Literal["packed", "padded"]
    batch_size: PositiveInt
    accumulation_steps: PositiveInt
    activation_checkpointing: bool
    max_steps: PositiveInt | None
    max_epochs: Annotated[float, Field(gt=0, le=1e9)] | None
    optimizer: Literal["adamw", "muon"]
    learning_rate: Annotated[float, Field(gt=0)]
    min_learning_rate: Annotated[float, Field(ge=0)]
    schedule: Literal["cosine", "linear", "constant", "wsd"]
    warmup_fraction: Annotated[float, Field(ge=0, le=1)]
    decay_fraction: Annotated[float, Field(ge=0, le=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    beta1: Fraction
    beta2: Fraction
    max_grad_norm: Annotated[float, Field(gt=0)]
    eval_interval: PositiveInt
    eval_batches: PositiveInt | None
    log_interval: PositiveInt
    patience: PositiveInt | None
    init_from: FilePath
    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["auto", "float32", "bfloat16"]
    compile: bool
    processes: Annotated[int, Field(gt=0, le=1024)]
    seed: NonNegativeInt

    @field_validator("init_from")
    @classmethod
    def init_from_is_in_pretrained(cls, path: str) -> str:
        if not path.startswith("pretrained/"):
            raise ValueError(f"must be a file in pretrained/ (or {NO_MODEL}); copy the model there")
        return path

    @model_validator(mode="after")
    def schedule_fits(self) -> "TrainConfig":
        if self.max_steps is None and self.max_epochs is None:
            raise ValueError("max_steps and max_epochs are both null; set one of them")
        if self.schedule == "wsd" and self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError(
                f"warmup_fraction ({self.warmup_fraction}) and decay_fraction "
                f"({self.decay_fraction}) exceed 1 together"
            )
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate ({self.min_learning_rate}) exceeds "
                f"learning_rate ({self.learning_rate})"
            )
        return self


class EvaluateConfig(Section):
    batch_size: PositiveInt
    prompts: Annotated[list[str], Field(min_length=1)]
    max_new_tokens: PositiveInt
    temperature: Annotated[float, Field(ge=0)]
    top_k: NonNegativeInt
    seed: NonNegativeInt


class ExportConfig(Section):
    tolerance: Annotated[float, Field(gt=0)]


class QuantizeConfig(Section):
    formats: list[Literal["int8"]]
    max_quality_loss: Annotated[float, Field(gt=0)]


class RuntimeConfig(Section):
    checkpoint_interval: PositiveInt
    checkpoint_seconds: Annotated[float, Field(gt=0)] | None


class Params(Section):
    """Contents of params.yaml.

    One section for each stage (`data` and `tokenizer` for the first two), `threads`, which several
    stages read, and `runtime`, whose keys change no output.
    """

    data: DataConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    export: ExportConfig
    quantize: QuantizeConfig
    threads: Threads
    runtime: RuntimeConfig


# For model files, experiments and commits older than a key: the value that has the same effect.
VALUE_BEFORE: dict[str, dict[str, Any]] = {
    "data": {
        "pattern": "*",
        "format": "auto",
        "text_column": "text",
        "separator": "<|endoftext|>",
        "deduplicate": False,
        "normalization": "none",
        "invalid_utf8": "error",
    },
    "tokenizer": {"type": "char", "vocab_size": 1024, "lowercase": False},
    "model": {
        "positional": "sinusoidal",
        "activation": "relu",
        "tied_head": False,
        "head_bias": True,
        "single_special_token": False,
        "qk_norm": False,
        "bigram_buckets": 0,
        "trigram_buckets": 0,
    },
    "train": {
        "accumulation_steps": 1,
        "activation_checkpointing": False,
        "max_epochs": None,
        "optimizer": "adamw",
        "schedule": "cosine",
        "eval_batches": None,
        "init_from": NO_MODEL,
        "device": "auto",
        "precision": "float32",
        "compile": False,
        "processes": 1,
    },
}


def add_missing(sections: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Add to each of `sections` the keys that it lacks because it is older than they are."""
    return {name: {**VALUE_BEFORE.get(name, {}), **values} for name, values in sections.items()}


class _Constructor(SafeConstructor):
    """Converts YAML to values, and names the line of a value that cannot be converted."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (YAMLError, RecursionError, MemoryError):
            raise
        except Exception as error:  # of int(), float(), datetime() and others
            raise ConstructorError(None, None, one_line(error), node.start_mark) from None


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Load and validate the parameters in `path`.

    Raises:
        UserError: The file is missing or not YAML, a key is unknown or missing, or a value has the
            wrong type or range. The message names the key.
    """
    try:
        with (
            read_errors(path, "run in the folder that contains it"),
            warnings.catch_warnings(action="ignore", category=YAMLWarning),
        ):
            # YAML 1.2, like DVC: 1e-3 is a number (in YAML 1.1 it is a string)
            yaml = YAML(typ="safe", pure=True)
            yaml.Constructor = _Constructor
            return Params.model_validate(yaml.load(path))
    except ValidationError as error:
        raise UserError(f"{path}: {_one_line(error)}") from None
    except MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}: not valid YAML: {error.problem}{line}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {one_line(error)}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid YAML: nested too deeply") from None


def _one_line(error: ValidationError) -> str:
    # unknown keys first: a misspelled key is also reported as missing
    first, *others = sorted(
        error.errors(), key=lambda problem: problem["type"] != "extra_forbidden"
    )
    key = _key(first) or "the file"
    alike = [problem["msg"] for problem in (first, *others) if _key(problem) == _key(first)]
    problem = " or ".join(dict.fromkeys(alike)).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        problem = "unknown key; remove it or correct its name"
    elif first["type"] == "missing":
        problem = "missing; add it"
    elif isinstance(first["input"], str | int | float | None):
        problem += f", but it is {first['input']!r}"
    keys = {_key(other) for other in others} - {key}
    more = f" (also wrong: {', '.join(sorted(keys))})" if keys else ""
    return " ".join(f"{key}: {problem}{more}".split())


def _key(problem: ErrorDetails) -> str:
    """Return section.key, or threads, without the branch of a union that pydantic appends."""
    depth = 1 if problem["loc"][:1] == ("threads",) else 2
    return ".".join(str(part) for part in problem["loc"][:depth])
