"""What a training costs: time, memory, floating-point operations."""

import sys
import time

import psutil
import torch
from torch import nn

from minigpt.model import MiniGPT


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
    looked_up = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding))
    multiplied = model.num_parameters - looked_up
    return 6 * multiplied + 12 * len(model.blocks) * model.head.in_features * model.max_seq_len
