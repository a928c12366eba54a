"""Memory that a training needs, estimated before anything is allocated, and a way to need less.

The estimate is a lower bound: it leaves out what a kernel may not need to store.
"""

from functools import partial

import psutil
import torch
from torch.utils.checkpoint import checkpoint

from minigpt.common.config import Params
from minigpt.common.errors import UserError
from minigpt.data.batches import Batches
from minigpt.model.model import MiniGPT
from minigpt.model.size import num_parameters

# parameters that can make a training arbitrarily large
SIZES = (
    ("model", "d_model"),
    ("model", "d_ff"),
    ("model", "num_layers"),
    ("model", "bigram_buckets"),
    ("model", "trigram_buckets"),
    ("train", "batch_size"),
)


def check_memory(params: Params, vocab_size: int, batches: Batches, device: torch.device) -> None:
    """Compare the memory that a training needs with what is available.

    Raises:
        UserError: It is too little; the message names the parameter to lower.
    """
    row_length = int((batches.ends - batches.starts).mean()) - 1
    for estimate, available in (
        (device_bytes, _available(device)),
        (batch_bytes, _available(torch.device("cpu"))),
    ):
        needed = estimate(params, vocab_size, row_length)
        if needed > available:
            # the culprit is the parameter without which the least memory would be needed
            section, key = min(
                SIZES, key=lambda size: estimate(_without(params, *size), vocab_size, row_length)
            )
            value = getattr(getattr(params, section), key)
            raise UserError(
                f"{section}.{key}: with {value}, training needs at least {needed:,} bytes of "
                f"memory, but {available:,} are available; lower it"
            )


def device_bytes(params: Params, vocab_size: int, row_length: int) -> int:
    """Return the bytes of the model, its optimizer and the activations of a micro-batch."""
    model, train = params.model, params.train
    # weights, gradients, and one or two moments
    copies = 4 if train.optimizer == "adamw" else 3
    weights = 4 * copies * num_parameters(vocab_size, model)
    rows = train.batch_size // (train.accumulation_steps * train.processes)
    # kept for the backward pass, in 2 bytes or more: 5 vectors of a block and its hidden layer
    block = 2 * (5 * model.d_model + model.d_ff)
    if train.activation_checkpointing:
        blocks = 2 * model.num_layers * model.d_model + block
    else:
        blocks = model.num_layers * block
    return weights + rows * row_length * (blocks + 4 * vocab_size)


def checkpoint_activations(model: MiniGPT) -> None:
    """Keep only the inputs of the blocks of `model` for the backward pass.

    It computes the rest again, so that the gradients are the same (Chen et al., arXiv:1604.06174).
    """
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def batch_bytes(params: Params, vocab_size: int, row_length: int) -> int:
    """Return the bytes of the inputs and targets of a batch, as 64-bit integers."""
    return 2 * 8 * params.train.batch_size * row_length


def _without(original: Params, section: str, key: str) -> Params:
    """Return the parameters with the smallest value of one."""
    smallest = getattr(original, section).model_copy(update={key: 1})
    return original.model_copy(update={section: smallest})


def _available(device: torch.device) -> int:
    """Return the free memory of an accelerator, or of the computer, in bytes."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return int(psutil.virtual_memory().available)
