"""Parameters as MLflow shows them: flat names and plain text."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from pipeline.tracking.git import git

# sections of stages that only read the model
READER_PREFIXES = ("evaluate.", "export.", "quantize.")
OTHER_PREFIXES = (*READER_PREFIXES, "runtime.")  # sections that do not determine the model
# the abbreviations of the field, in names of runs, which MLflow cuts at some 30 characters
SHORT_KEYS = {
    "learning_rate": "lr",
    "min_learning_rate": "min_lr",
    "batch_size": "batch",
    "max_steps": "steps",
    "max_seq_len": "context",
    "num_heads": "heads",
    "num_layers": "layers",
}
MAX_NAME = 250  # characters that MLflow accepts


def flatten(values: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """Join the keys of nested `values`: {"a": {"b": 1}} → {"a.b": 1}."""
    flat: dict[str, Any] = pd.json_normalize(dict(values), sep=separator).iloc[0].to_dict()
    return flat


def model_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Select the flat `params` that determine the model."""
    return {name: value for name, value in params.items() if not name.startswith(OTHER_PREFIXES)}


def as_text(params: Mapping[str, Any]) -> dict[str, str]:
    """Format values as text; 60.0 as 60, which is how dvc.lock may store the number."""
    return {
        name: str(int(value) if isinstance(value, float) and value.is_integer() else value)
        for name, value in params.items()
    }


def changes(params: Mapping[str, Any], revision: str) -> dict[str, Any]:
    """Return the flat `params` that differ from params.yaml at a Git revision."""
    text = git("show", f"{revision}:./params.yaml")
    committed = flatten(YAML(typ="safe", pure=True).load(text)) if text else {}
    return {
        name: value
        for name, value in model_params(params).items()
        if committed.get(name, value) != value
    }


def run_name(title: str, changed: Mapping[str, Any]) -> str:
    """Return the name of a run: its title, if any, and what differs: "deep layers=6 lr=1e-3".

    Without both the name is "defaults".
    """
    parts = [f"{_short_key(name)}={_short_value(value)}" for name, value in changed.items()]
    return " ".join(filter(None, [title, *parts]))[:MAX_NAME] or "defaults"


def _short_key(name: str) -> str:
    key = name.rpartition(".")[2]
    return SHORT_KEYS.get(key, key)


def _short_value(value: Any) -> str:
    """Format a value in few characters: 0.001 as 1e-3, a path as its last part."""
    if isinstance(value, float):
        mantissa, _, exponent = f"{value:e}".partition("e")
        scientific = f"{float(mantissa):g}e{int(exponent)}"
        return min(scientific, f"{value:g}", key=len)
    return str(value).rpartition("/")[2]
