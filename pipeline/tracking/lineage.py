"""Where a run comes from, and what it costs: commit, DVC experiment, machine, libraries, time, memory."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from ruamel.yaml import YAML
from torch import nn

from minigpt.model.model import MiniGPT

LIBRARIES = ("torch", "numpy", "onnxruntime", "mlflow", "dvc")
LATER = ("evaluate.", "export.", "runtime.")  # parameters of the stages that only read the model


def git(*command: str) -> str:
    """What Git prints, or "" where it fails or there is none."""
    try:
        return subprocess.run(
            ["git", *command], capture_output=True, text=True, check=False
        ).stdout.strip()
    except OSError:
        return ""


def origin() -> dict[str, str]:
    """The Git commit and DVC's experiment, as tags."""
    tags = {
        "git_commit": git("rev-parse", "HEAD"),
        # what the pipeline itself writes does not count
        "git_dirty": str(
            bool(git("status", "--porcelain", "-uno", "--", ".", ":!reports", ":!dvc.lock"))
        ).lower(),
        "dvc_experiment": os.environ.get("DVC_EXP_NAME", ""),
        "dvc_baseline": os.environ.get("DVC_EXP_BASELINE_REV", ""),
    }
    return {name: value for name, value in tags.items() if value}


def machine() -> dict[str, str]:
    """The hardware and the libraries, as tags."""
    return {
        "cpu": _cpu_name(),
        "cpu_cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.1f}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{library: version(library) for library in LIBRARIES},
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next(
        (line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine()
    )


def flatten(values: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}."""
    return pd.json_normalize(dict(values), sep=separator).iloc[0].to_dict()


def of_model(params: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the flat `params` that make another model."""
    return {name: value for name, value in params.items() if not name.startswith(LATER)}


def run_name(params: Mapping[str, Any], revision: str) -> str:
    """How the model's flat `params` differ from params.yaml at a Git revision: "num_layers=6 learning_rate=0.001".

    "defaults" where nothing differs.
    """
    text = git("show", f"{revision}:./params.yaml")
    committed = flatten(YAML(typ="safe", pure=True).load(text)) if text else {}
    changed = [
        f"{name.split('.', 1)[1]}={value:g}"
        if isinstance(value, float)
        else f"{name.split('.', 1)[1]}={value}"
        for name, value in of_model(params).items()
        if committed.get(name, value) != value
    ]
    return " ".join(changed)[:250] or "defaults"  # MLflow takes 250 characters


class Costs:
    """What this process has spent since it began to count; of several that train together, the first."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def __call__(self) -> dict[str, float]:
        """Seconds by the clock and of all cores together, and the most memory so far in MiB."""
        spent = {
            "wall_seconds": time.monotonic() - self._wall,
            "cpu_seconds": time.process_time() - self._cpu,
            "peak_memory_mib": _peak_memory() / 2**20,
        }
        if torch.cuda.is_available():
            spent["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
        return spent


def _peak_memory() -> int:
    """Bytes."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def flops_per_token(model: MiniGPT) -> float:
    """An estimate of what training does for each token, forward and backward: 6 N + 12 L C T.

    N counts the parameters but for embeddings, which are only looked up; the second term is the
    attention over T = max_seq_len positions in L layers (Chowdhery et al., "PaLM", arXiv:2204.02311,
    appendix B).
    """
    looked_up = sum(
        module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding)
    )
    multiplied = model.num_parameters - looked_up
    return 6 * multiplied + 12 * len(model.blocks) * model.head.in_features * model.max_seq_len
