"""Faster equivalents of formulas in `model.py`."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 128  # queries in a product of `ChunkedAttention`: fewer save more, but fill a core less


def fused_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Return `attention_weights(q, k) @ v`, (B, H, T, D), by the fastest kernel for the device.

    PyTorch's kernel never stores the (B, H, T, T) weights. In bfloat16 on a CPU its backward pass
    is slow: `ChunkedAttention` takes less than half of the time.
    """
    if v.dtype == torch.bfloat16 and v.device.type == "cpu":
        if not dropout:
            return ChunkedAttention.apply(q, k, v)  # type: ignore[no-untyped-call, no-any-return]
        with torch.autocast("cpu", enabled=False):  # four times as fast as in bfloat16
            return fused_attention(q.float(), k.float(), v.float(), dropout)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)


class ChunkedAttention(torch.autograd.Function):
    """Causal attention in bfloat16, in chunks of queries.

    A chunk is compared only with the keys up to its end, which leaves out almost half of the
    products of a long row. N = B·H is the batch of all products.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attended values (B, H, T, D)."""
        shape, T = q.shape, q.shape[2]
        q, k, v = (tensor.to(torch.bfloat16).flatten(0, 1) for tensor in (q, k, v))  # (N, T, D)
        q = q * q.shape[-1] ** -0.5
        future = torch.full((CHUNK, CHUNK), float("-inf"), dtype=q.dtype).triu(1)
        attended, weights = torch.empty_like(v), []
        for start in range(0, T, CHUNK):
            end = min(start + CHUNK, T)
            scores = q[:, start:end] @ k[:, :end].mT  # (N, end - start, end)
            scores[:, :, start:] += future[: end - start, : end - start]
            weights.append(scores.softmax(-1))
            attended[:, start:end] = weights[-1] @ v[:, :end]
        ctx.save_for_backward(q, k, v, *weights)
        return attended.view(shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of q, k and v by the chain rule, chunk by chunk."""
        q, k, v, *weights = ctx.saved_tensors
        grad, shape = grad_outputs[0].to(torch.bfloat16).flatten(0, 1), grad_outputs[0].shape
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for index, weight in enumerate(weights):
            end = weight.shape[2]
            chunk = slice(index * CHUNK, end)
            grad_v[:, :end].baddbmm_(weight.mT, grad[:, chunk])
            grad_weight = grad[:, chunk] @ v[:, :end].mT  # (N, end - start, end)
            grad_scores = torch._softmax_backward_data(grad_weight, weight, -1, weight.dtype)
            grad_q[:, chunk] = grad_scores @ k[:, :end]
            grad_k[:, :end].baddbmm_(grad_scores.mT, q[:, chunk])
        grad_q *= q.shape[-1] ** -0.5
        return grad_q.view(shape), grad_k.view(shape), grad_v.view(shape)
