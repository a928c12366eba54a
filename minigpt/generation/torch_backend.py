"""Inference backend that runs a checkpoint with PyTorch."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.common.errors import UserError, one_line
from minigpt.data.ngram_table import read_ngram_table
from minigpt.model.checkpoint import load_model
from minigpt.model.model import MiniGPT, TransformerBlock
from minigpt.model.variants import CONTEXT, SingleSpecialEmbedding
from minigpt.tokenizer import Tokenizer, tokenizer_from_dict


class TorchBackend:
    """A model and its tokenizer. Implements `minigpt.generation.backend.Backend`."""

    def __init__(
        self, model: MiniGPT, tokenizer: Tokenizer, metadata: dict[str, Any] | None = None
    ):
        """Wrap `model`; `metadata` is that of its checkpoint."""
        self.model, self.tokenizer, self.metadata = model, tokenizer, metadata or {}
        self.max_seq_len = model.max_seq_len
        self.ngram_table = read_ngram_table(self.metadata, tokenizer.vocab_size)
        self.draft_length, self.max_batch_size = 7, 16

    @classmethod
    def load(cls, path: Path) -> "TorchBackend":
        """Load the checkpoint at `path`.

        Raises:
            UserError: `path` is not a checkpoint.
        """
        model, metadata = load_model(path)
        bind_parameters(model)
        try:
            return cls(model, tokenizer_from_dict(metadata["tokenizer"]), metadata)
        except (ValueError, TypeError, AttributeError) as error:  # in the draft table
            raise UserError(
                f"{path}: not a model of this version of MiniGPT: {one_line(error)}"
            ) from None

    def new_cache(self, batch_size: int) -> "TorchKVCache":
        return TorchKVCache(self.model, batch_size)


class CachedTensors(NamedTuple):
    """Keys, values and ids of the positions that B sequences have already passed through the model.

    The caller knows how many positions of each row are valid; the others hold any finite values.
    """

    keys: Tensor  # (num_layers, B, S, H, D)
    values: Tensor  # (num_layers, B, S, H, D)
    ids: Tensor  # (B, S + 2): the id of position t at t + 2, after two <pad>

    def row(self, row: int) -> "CachedTensors":
        """Return a view of one row, as a batch of one."""
        at = slice(row, row + 1)
        return CachedTensors(self.keys[:, at], self.values[:, at], self.ids[at])


class TorchKVCache:
    """Implements `minigpt.generation.backend.KVCache`."""

    def __init__(self, model: MiniGPT, batch_size: int):
        self._model = model
        embedding = next(model.parameters())  # (V, C)
        B, S, H = batch_size, model.max_seq_len, model.num_heads
        shape = len(model.blocks), B, S, H, embedding.shape[1] // H
        ids = embedding.new_zeros((B, CONTEXT + S), dtype=torch.int64)
        self.cached = CachedTensors(embedding.new_zeros(shape), embedding.new_zeros(shape), ids)

    def prefill(self, row: int, ids: Sequence[int] | np.ndarray, cached_length: int) -> np.ndarray:
        positions = np.arange(cached_length, cached_length + len(ids))
        cached = self.cached.row(row)
        return self._run(cached, np.array(ids)[None], positions[None]).squeeze(0)  # (T, V)

    def decode(self, ids: np.ndarray, cached_lengths: np.ndarray) -> np.ndarray:
        return self._run(self.cached, ids[:, None], cached_lengths[:, None]).squeeze(1)  # (B, V)

    def _run(self, cached: CachedTensors, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        inputs = torch.from_numpy(np.stack((ids, positions))).to(cached.keys.device)
        return forward_cached(self._model, inputs[0], inputs[1], cached).float().cpu().numpy()


@torch.inference_mode()
def forward_cached(
    model: MiniGPT, input_ids: Tensor, positions: Tensor, cached: CachedTensors
) -> Tensor:
    """Incremental forward pass: append the new tokens to `cached` and return their logits.

    Args:
        model: the model, in evaluation mode.
        input_ids: new tokens (B, T).
        positions: their positions (B, T), consecutive in each row, after its valid ones.
        cached: updated in place.

    Returns:
        Logits (B, T, V), equal to those of `model.forward` over the whole rows.
    """
    rows = torch.arange(len(positions), device=positions.device).unsqueeze(1)  # (B, 1)
    cached.ids[rows, positions + CONTEXT] = input_ids
    T = input_ids.shape[1]
    columns = positions[:, :1] + torch.arange(CONTEXT + T, device=positions.device)  # (B, 2+T)
    x = model.embed(cached.ids[rows, columns], positions)  # (B, T, C)
    end = int(positions.max()) + 1  # P + T, where P is the longest cached length
    mask = None
    if positions.numel() > 1:  # a single position attends to all before it
        future = torch.arange(end, device=x.device) > positions.unsqueeze(2)  # (B, T, P+T)
        mask = x.new_zeros(future.shape).masked_fill_(future, float("-inf")).unsqueeze(1)
    blocks = cast(list[TransformerBlock], model.blocks)
    for block, keys, values in zip(blocks, cached.keys, cached.values, strict=True):
        q, k, v = block.attention.project(block.norm1(x), positions)  # (B, H, T, D) each
        keys[rows, positions], values[rows, positions] = k.transpose(1, 2), v.transpose(1, 2)
        k, v = keys[:, :end].transpose(1, 2), values[:, :end].transpose(1, 2)  # (B, H, P+T, D)
        x = x + block.attention.merge(F.scaled_dot_product_attention(q, k, v, mask))  # (B, T, C)
        x = x + block.feed_forward(block.norm2(x))
    logits: Tensor = model.head(model.norm(x))  # (B, T, V)
    return logits


def bind_parameters(model: MiniGPT) -> None:
    """Replace the small layers of `model` by functions with bound parameters; for inference only.

    This halves the time of a forward pass of one token: calling an `nn.Module` costs more than a
    small product, because PyTorch looks up hooks and parameters. Attributes in a module's
    `__dict__` take precedence over its child modules, so the functions are stored there.
    """
    for module in model.modules():
        for name, layer in module.named_children():
            module.__dict__[name] = _bound(layer)


def _bound(layer: nn.Module) -> Callable[..., Tensor]:
    match layer:
        case nn.Linear():
            return partial(F.linear, weight=layer.weight, bias=layer.bias)
        case nn.LayerNorm():
            return partial(
                torch.layer_norm,
                normalized_shape=layer.normalized_shape,
                weight=layer.weight,
                bias=layer.bias,
                eps=layer.eps,
            )
        case nn.Embedding() if not isinstance(layer, SingleSpecialEmbedding):
            return partial(F.embedding, weight=layer.weight)
    return layer
