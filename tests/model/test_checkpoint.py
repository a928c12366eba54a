import os

import pytest
import torch
from conftest import (
    ARCHITECTURES,
    build_model,
    model_metadata,
    randomize,
    runtime_config,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.common.errors import UserError
from minigpt.generation.torch_backend import TorchBackend
from minigpt.model.checkpoint import DamagedFileError, load, load_model, save
from minigpt.training.resume import ResumeStore

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "rng": torch.arange(9, dtype=torch.uint8),
    "b": torch.tensor(1.5),
}


def test_loaded_content_equals_saved_content(tmp_path):
    path = tmp_path / "new" / "x.safetensors"
    save(path, TENSORS, {"step": 3, "text": "é"})
    tensors, metadata = load(path)
    assert metadata == {"step": 3, "text": "é"}
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("switches", ARCHITECTURES, ids=str)
def test_every_architecture_is_stored_and_loaded(tmp_path, tokenizer, switches):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "num_heads": 2, "num_layers": 1, "d_ff": 32, "max_seq_len": 16}
    model = randomize(build_model(tokenizer.vocab_size, **sizes, **switches))
    path, ids = tmp_path / "model.safetensors", torch.arange(16).unsqueeze(0)
    save(path, model.state_dict(), model_metadata(model, tokenizer))
    tensors, _ = load(path)
    assert sum(tensor.numel() for tensor in tensors.values()) == model.num_parameters
    logits = model(ids)
    assert torch.equal(load_model(path)[0](ids), logits)
    assert torch.equal(TorchBackend.load(path).model(ids), logits)  # with bound parameters


def test_save_leaves_no_temporary_file(tmp_path):
    save(tmp_path / "new" / "x.safetensors", TENSORS, {})
    assert os.listdir(tmp_path / "new") == ["x.safetensors"]


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in ("one", "two"):
        save(
            tmp_path / name,
            dict(reversed(TENSORS.items())) if name == "two" else TENSORS,
            {"a": 1, "b": 2},
        )
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_file_is_detected(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damage") / "x.safetensors"
    save(path, TENSORS, {"step": 3})
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[at:]
    path.write_bytes(content)
    try:
        tensors, metadata = load(path)
    except DamagedFileError:
        return
    assert metadata == {"step": 3}  # the flipped bit was in the padding
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save(path, TENSORS, {"step": 1})
    before = path.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(path, TENSORS, {"step": 2})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_error_names_the_invalid_model_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.safetensors: not found; run `dvc repro`"):
        load_model(tmp_path / "none.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"junk\.safetensors: damaged"):
        load_model(tmp_path / "junk.safetensors")
    save(tmp_path / "other.safetensors", TENSORS, {})
    with pytest.raises(UserError, match=r"other\.safetensors: not a model"):
        load_model(tmp_path / "other.safetensors")


@pytest.fixture
def store(tmp_path) -> ResumeStore:
    """Return a store after checkpoints at steps 5, 10 and 15."""
    store = ResumeStore(tmp_path / "states", runtime_config())
    assert store.load() is None
    for step in (5, 10, 15):
        store.save(step, TENSORS, progress(step))
    return store


def progress(step: int, best_step: int = 0) -> dict[str, dict[str, int]]:
    return {"progress": {"step": step, "best_step": best_step}}


def test_resume_store_keeps_two_checkpoints(store, tmp_path):
    assert len(list((tmp_path / "states").iterdir())) == 2
    assert store.load()[1] == progress(15)


def test_damaged_checkpoint_is_skipped(store, tmp_path, caplog):
    newest, before = sorted((tmp_path / "states").iterdir(), reverse=True)
    newest.write_bytes(newest.read_bytes()[:-1])
    assert store.load()[1] == progress(10)
    assert "trying the checkpoint before it" in caplog.text
    before.write_bytes(b"")
    assert store.load() is None


def test_new_checkpoint_replaces_damaged_later_ones(store, tmp_path):
    newest, before = sorted((tmp_path / "states").iterdir(), reverse=True)
    newest.write_bytes(newest.read_bytes()[:-1])
    assert store.load()[1] == progress(10)
    before.write_bytes(b"")
    assert store.load() is None
    store.save(2, TENSORS, progress(2))
    assert store.load()[1] == progress(2)


def test_checkpoint_without_its_best_weights_is_skipped(store, tmp_path):
    store.best.keep(16, TENSORS)
    store.save(20, TENSORS, progress(20, best_step=16))
    assert store.load()[1] == progress(20, best_step=16)
    (tmp_path / "states/best-000000016.safetensors").write_bytes(b"")
    assert store.load()[1] == progress(15)
    assert not list((tmp_path / "states").glob("best-*"))  # it will be trained again


def test_best_weights_of_both_checkpoints_are_kept(store, tmp_path):
    for step in range(20, 50, 5):
        store.best.keep(step - 1, TENSORS)
        store.save(step, TENSORS, progress(step, best_step=step - 1))
    names = sorted(file.stem[-2:] for file in (tmp_path / "states").iterdir())
    assert names == ["39", "40", "44", "45"]
