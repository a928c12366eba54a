"""The datasets of a run, as MLflow shows them: the token files of both splits, and their digests.

A record has them in datasets.json, by split. MLflow identifies a dataset by name and digest, so the
metrics that were measured on it name both.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minigpt.data.token_files import Tokens
from pipeline.tracking import store
from pipeline.tracking.record import Record

CONTEXTS = {"train": "training", "val": "validation"}


def describe(path: str, tokens: Tokens) -> dict[str, Any]:
    """Return name, digest, source and counts of each split of the text at `path`."""
    return {
        split: {
            "name": _name(path, split),
            "digest": tokens.sha256([split])[:16],
            "path": path,
            "counts": {
                name: value for name, value in asdict(info).items() if isinstance(value, int)
            },
        }
        for split, info in tokens.info.items()
        if info.documents
    }


def _name(path: str, split: str) -> str:
    return f"{Path(path).name.partition('.')[0]}-{split}"


def validation_dataset(record: Record) -> dict[str, str]:
    """Return name and digest of the split that the evaluation used; empty if it is unknown."""
    tags, path = record.tags, record.read("params").get("data.path")
    if path is None or "validation_tokens" not in tags:
        return {}
    split = "train" if tags.get("held_out") == "false" else "val"
    return {"dataset_name": _name(path, split), "dataset_digest": tags["validation_tokens"]}


def log_datasets(record: Record, run_id: str) -> None:
    """Log the datasets of a record as inputs of its run."""
    from mlflow.entities import DatasetInput, InputTag

    datasets = record.read("datasets")
    if older := record.read("dataset"):  # of a record that an older version wrote
        datasets = {"train": {"name": Path(older["path"]).name, **older}}
    inputs = [
        DatasetInput(_entity(dataset), [InputTag("mlflow.data.context", CONTEXTS[split])])
        for split, dataset in datasets.items()
    ]
    try:
        store.client().log_inputs(run_id, inputs)
    except store.mlflow().exceptions.MlflowException:
        # fails if another run logs the same dataset at that moment
        store.client().log_inputs(run_id, inputs)


def _entity(dataset: Mapping[str, Any]) -> Any:
    from mlflow.entities import Dataset
    from mlflow.types import ColSpec, Schema

    details = {}
    if "counts" in dataset:
        schema = Schema([ColSpec("integer", "token_id")])
        details = {
            "schema": json.dumps({"mlflow_colspec": schema.to_dict()}),
            "profile": json.dumps(dataset["counts"]),
        }
    source = json.dumps({"uri": dataset["path"]})
    return Dataset(dataset["name"], dataset["digest"], "local", source, **details)
