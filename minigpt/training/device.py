"""Choice of the device to train on and of the precision of its matrix products."""

import os

import torch

from minigpt.common.config import TrainConfig
from minigpt.common.errors import UserError


def choose_device(name: str) -> torch.device:
    """Return the device for `name` ("auto": the accelerator of this machine, if there is one).

    Raises:
        UserError: The device is not available, or there are more processes than accelerators.
    """
    available = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if name not in ("auto", "cpu", available.type):
        raise UserError(f"train.device: {name} is not available here; use auto or cpu")
    if name == "cpu" or available.type == "cpu":
        return torch.device("cpu")
    # each process on this machine uses a different accelerator
    device = torch.device(available.type, int(os.environ.get("LOCAL_RANK", 0)))
    count = torch.accelerator.device_count()
    if device.index >= count:
        raise UserError(
            f"train.processes: this machine has {count} {available.type} devices; "
            f"use at most {count}"
        )
    # without this setting cuBLAS is not deterministic
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.accelerator.set_device_index(device.index)
    return device


def use_bfloat16(config: TrainConfig, device: torch.device) -> bool:
    """Return whether to run matrix products in bfloat16.

    "auto" selects it where the hardware supports it, which quarters their time.
    """
    if config.precision != "auto":
        return config.precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(
        capabilities.get(name) for name in ("avx512_bf16", "amx_bf16")
    )
