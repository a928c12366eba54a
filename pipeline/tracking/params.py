"""Parameters as MLflow shows them: flat names and plain text."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from pipeline.tracking.git import git

READER_PREFIXES = ("evaluate.", "export.")  # sections of stages that only read the model
OTHER_PREFIXES = (*READER_PREFIXES, "runtime.")  # sections that do not determine the model


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


def run_name(params: Mapping[str, Any], revision: str) -> str:
    """Return how `params` differ from params.yaml at a Git revision: "num_layers=6 seed=1".

    Without a difference the name is "defaults".
    """
    text = git("show", f"{revision}:./params.yaml")
    committed = flatten(YAML(typ="safe", pure=True).load(text)) if text else {}
    changed = [
        f"{name.partition('.')[2]}={f'{value:g}' if isinstance(value, float) else value}"
        for name, value in model_params(params).items()
        if committed.get(name, value) != value
    ]
    return " ".join(changed)[:250] or "defaults"  # the limit of MLflow is 250 characters
