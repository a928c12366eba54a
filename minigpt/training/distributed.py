"""One training in several processes: each works through its share of every batch (data parallelism).

PyTorch's engine does it: torchrun starts the processes and watches over them, and
DistributedDataParallel makes every gradient the mean over all of them (pytorch.org/docs/stable/ddp_comm_hooks,
Li et al., arXiv:2006.15704).
"""

import contextlib
import datetime
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
    """The processes that train together; one that trains alone is a group of one.

    Attributes:
        rank: the number of this process, from 0; only 0 writes and reports.
        size: how many there are.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.size = dist.get_world_size() if dist.is_initialized() else 1

    def parallel(self, model: nn.Module) -> nn.Module:
        """`model`, such that its gradients become the mean over the group."""
        return DistributedDataParallel(model) if self.size > 1 else model

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the group, in every process."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag))))

    def wait(self) -> None:
        """Until every process of the group is here."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def joined() -> Iterator[Group]:
    """The group that this process belongs to, as torchrun's environment variables tell.

    Raises:
        UserError: another process of the group has ended.
    """
    if not launched():
        yield Group()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # the first may have to wait for another training; a process that is lost is noticed at once all the same
    dist.init_process_group(backend, timeout=datetime.timedelta(days=1))
    try:
        yield Group()
    except RuntimeError as error:
        if "onnection" not in str(error):
            raise
        raise UserError("another process of this training has ended; stopping, too") from None
    finally:
        dist.destroy_process_group()


def launched() -> bool:
    """Whether torchrun, or `launch`, has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launch(module: str, processes: int) -> None:
    """Run `python -m module` in so many processes on this machine, as torchrun does, and wait for them.

    Raises:
        UserError: a process was killed.
        SystemExit: a process failed, having said why; or a signal ended them all.
    """
    os.environ.setdefault(
        "LOGLEVEL", "CRITICAL"
    )  # torchrun's pages about a failed process; read at the import
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
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
                f"a training process was ended by {name}; `dvc repro` goes on from the last saved state"
            ) from None
        sys.exit(code)
