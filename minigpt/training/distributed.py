"""Data-parallel training: several processes, each with its share of every batch.

torchrun starts and supervises the processes; DistributedDataParallel averages their gradients
(Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training",
arXiv:2006.15704).
"""

import contextlib
import datetime
import logging
import os
import signal
import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from minigpt.common.errors import UserError


class Group:
    """Processes that train together; a single process is a group of size 1.

    Attributes:
        rank: Index of this process, from 0; only rank 0 writes files and reports.
        size: Number of processes.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.size = dist.get_world_size() if dist.is_initialized() else 1

    def parallel(self, model: nn.Module) -> nn.Module:
        """Wrap `model` so that its gradients are averaged over the group."""
        if self.size == 1:
            return model
        # gradients are views of the buckets that are sent, so there is one copy of them
        return DistributedDataParallel(model, gradient_as_bucket_view=True)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of `tensor` over the group, on every rank."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true on any rank."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag))))

    def wait(self) -> None:
        """Barrier: block until all ranks arrive."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def joined() -> Iterator[Group]:
    """Join the group that torchrun's environment variables describe, and leave it at the end.

    Raises:
        SystemExit: Another process of the group ended; that process or `launch` prints the reason.
    """
    if not launched():
        yield Group()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # long, because rank 0 may wait for another training; a lost process is detected at once anyway
    dist.init_process_group(backend, timeout=datetime.timedelta(days=1))
    try:
        yield Group()
    except RuntimeError as error:
        if "onnection" not in str(error):
            raise
        sys.exit(1)
    finally:
        dist.destroy_process_group()


def launched() -> bool:
    """Return whether torchrun or `launch` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launch(module: str, processes: int) -> None:
    """Run `python -m module` in several processes on this machine, as torchrun does.

    Raises:
        UserError: There are far more processes than CPU cores, or a process was killed.
        SystemExit: A process failed and printed the reason, or a signal ended all of them.
    """
    cores = os.cpu_count() or 1
    if processes > 4 * cores:
        raise UserError(
            f"train.processes: {processes} is more than four for each of the {cores} CPU cores; "
            "lower it"
        )
    logging.disable()  # torchrun's long report of a failed process, which prints the reason itself
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="minigpt",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", module)
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        if code < 0:
            name = signal.Signals(-code).name
            raise UserError(
                f"a training process was ended by {name}; rerun to resume from the last checkpoint"
            ) from None
        sys.exit(code)
