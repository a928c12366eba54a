"""Parameters that need more memory than there is: refused before anything is allocated."""

import numpy as np
import psutil
import pytest
import torch
from conftest import PARAMS

from minigpt.common.errors import UserError
from minigpt.data.batches import Batches
from minigpt.training.memory import check_memory

CPU = torch.device("cpu")


def check(**changes: dict[str, int]) -> None:
    """Check the parameters of params.yaml with changes by section."""
    sections = {
        name: getattr(PARAMS, name).model_copy(update=values) for name, values in changes.items()
    }
    ids = np.full(1000, 5)
    check_memory(PARAMS.model_copy(update=sections), 67, Batches(ids, "packed", 2, 64), CPU)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "d_model", 1_000_000),
        ("model", "d_ff", 10**11),
        ("model", "num_layers", 10**9),
        ("model", "bigram_buckets", 10**12),
        ("model", "trigram_buckets", 10**12),
        ("train", "batch_size", 10**12),
        ("train", "batch_size", 10**400),
    ],
)
def test_memory_that_is_not_there_names_the_parameter(section, key, value):
    with pytest.raises(UserError, match=rf"^{section}\.{key}: with 10+, .* [\d,]+ bytes"):
        check(**{section: {key: value}})


def test_micro_batches_do_not_hide_a_huge_batch():
    with pytest.raises(UserError, match=r"^train\.batch_size: with 10+, "):
        check(train={"batch_size": 10**12, "accumulation_steps": 10**12})


def test_available_memory_is_the_limit(monkeypatch):
    check()
    memory = type("Memory", (), {"available": 10**7})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with pytest.raises(UserError, match=r"but 10,000,000 are available"):
        check()
