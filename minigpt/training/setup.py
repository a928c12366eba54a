"""Construction of a `Trainer` from the parameters, and the errors that a training can raise."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from minigpt.common.config import NO_MODEL, Params
from minigpt.common.errors import UserError
from minigpt.data.batches import Batches
from minigpt.data.token_files import Tokens
from minigpt.model.model import MiniGPT
from minigpt.tokenizer import Tokenizer
from minigpt.training.distributed import Group
from minigpt.training.fine_tuning import load_pretrained
from minigpt.training.memory import check_memory
from minigpt.training.resume import ResumeStore
from minigpt.training.train import Trainer

log = logging.getLogger(__name__)


def build_trainer(
    params: Params,
    tokenizer: Tokenizer,
    tokens: Tokens,
    device: torch.device,
    resume: ResumeStore,
    group: Group,
) -> Trainer:
    """Build the model, its batches and their trainer; the same seed gives the same training.

    Raises:
        UserError: There is too little memory, or a parameter does not fit the others or the data.
    """
    train, S = params.train, params.model.max_seq_len
    train_batches = Batches(tokens.ids["train"], train.layout, train.batch_size, S, seed=train.seed)
    # validated in micro-batches, which fit into memory; of other sizes only rounding depends
    rows = max(1, train.batch_size // train.accumulation_steps)
    val_batches = Batches(tokens.ids[tokens.val_split], train.layout, rows, S)
    check_memory(params, tokenizer.vocab_size, train_batches, device)
    torch.manual_seed(params.train.seed)
    torch.use_deterministic_algorithms(True)
    model = MiniGPT(tokenizer.vocab_size, params.model)
    if params.train.init_from != NO_MODEL:
        load_pretrained(Path(params.train.init_from), model, tokenizer)
    trainer = Trainer(model.to(device), train_batches, val_batches, params.train, resume, group)
    if trainer.progress.step:
        log.info("resuming at step %d of an interrupted training", trainer.progress.step)
    log.info("training %s parameters on %s", f"{model.num_parameters:,}", device.type)
    return trainer


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors of PyTorch that a parameter can avoid into a `UserError`."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise out_of_memory() from None
    except RuntimeError as error:
        if "can't allocate memory" in str(error):  # by PyTorch for the CPU
            raise out_of_memory() from None
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"train.compile: PyTorch cannot compile here ({reason}); set it to false"
        ) from None


def out_of_memory() -> UserError:
    return UserError("train.batch_size: out of memory; lower it, or raise train.accumulation_steps")
