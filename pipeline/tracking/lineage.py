"""Origin and costs of a run: commit, DVC experiment, machine, libraries, time and memory."""

import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import psutil
import torch
from torch import nn

from minigpt.model.model import MiniGPT
from minigpt.model.variants import LearnedEncoding
from pipeline.tracking.git import git

LIBRARIES = ("torch", "numpy", "onnxruntime", "mlflow", "dvc")


def origin() -> dict[str, str]:
    """Return the Git commit and the DVC experiment, as tags."""
    # the files that the pipeline itself writes do not count as changes
    changes = git("status", "--porcelain", "-uno", "--", ".", ":!reports", ":!dvc.lock")
    tags = {
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": str(bool(changes)).lower(),
        "dvc_experiment": os.environ.get("DVC_EXP_NAME", ""),
        "dvc_baseline": os.environ.get("DVC_EXP_BASELINE_REV", ""),
    }
    return {name: value for name, value in tags.items() if value}


def machine() -> dict[str, str]:
    """Return the hardware and the library versions, as tags."""
    return {
        "cpu": _cpu_name(),
        "cpu_cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.1f}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{library: installed(library)[1] for library in LIBRARIES},
    }


def installed(package: str) -> tuple[str, str]:
    """Return the distribution that contains `package`, and its version."""
    try:
        return package, version(package)
    except PackageNotFoundError:  # it has another name, such as onnxruntime-gpu
        names = packages_distributions().get(package, [])
        return (names[0], version(names[0])) if names else (package, "none")


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.split(": ")[1] for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def costs() -> dict[str, float]:
    """Return the seconds, CPU seconds of all cores and peak memory of this process."""
    used = {
        "wall_seconds": time.time() - psutil.Process().create_time(),
        "cpu_seconds": time.process_time(),
        "peak_memory_mib": _peak_memory() / 2**20,
    }
    if torch.cuda.is_available():
        used["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return used


def _peak_memory() -> int:
    """Return the peak memory of this process in bytes."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def flops_per_token(model: MiniGPT) -> float:
    """Estimate the training FLOPs per token, forward and backward: 6 N + 12 L C T.

    N counts the parameters without embeddings, which are only looked up; the second term is the
    attention over T = max_seq_len positions in L layers (Chowdhery et al., "PaLM",
    arXiv:2204.02311, appendix B).
    """
    lookups = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    if isinstance(model.positional_encoding, LearnedEncoding):
        lookups.append(model.positional_encoding.encoding)
    multiplied = model.num_parameters - sum(table.numel() for table in lookups)
    if model.config.tied_head:  # looked up and multiplied
        multiplied += model.head.weight.numel()
    attention = 12 * len(model.blocks) * model.config.d_model * model.max_seq_len
    return 6 * multiplied + attention
