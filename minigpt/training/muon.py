"""Muon: an optimizer for matrices whose updates are orthogonalized.

The gradient of a matrix is dominated by few directions. Muon gives all directions of an update the
same length, so that the rare ones are learned as fast (Jordan et al., "Muon", 2024,
kellerjordan.github.io/posts/muon). Beyond `torch.optim.Muon`: matrices of one shape are a single
batch, three steps approximate what five did, and stacked matrices are orthogonalized apart.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# (a, b, c) of each step, which give the best approximation that so few steps can give
# (Amsel et al., "The Polar Express", arXiv:2505.16932)
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
)
NESTEROV_MOMENTUM = 0.9


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return about U Vᵀ for each of the `matrices` U S Vᵀ, all (N, rows, columns), rows ≥ columns.

    Each step is a polynomial of the singular values in S. Those between 0.001 and 1 end between
    0.13 and 1.88. Closer to 1 would take more steps, and did not improve the loss.
    """
    # 1. Scale each matrix so that no singular value exceeds 1.
    norms = matrices.norm(dim=(1, 2), keepdim=True)  # (N, 1, 1)
    x: Tensor = matrices / (1.01 * norms + 1e-7)
    # 2. x ← a·x + b·x(xᵀx) + c·x(xᵀx)²
    for a, b, c in POLAR_EXPRESS:
        gram = x.mT @ x  # (N, columns, columns)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # (N, columns, columns)
        x = torch.baddbmm(x, x, polynomial, beta=a)  # (N, rows, columns)
    return x


class Muon(torch.optim.Optimizer):
    """Muon with decoupled weight decay; updates have the size of AdamW's and share its rates.

    Args:
        groups: Parameter groups. All parameters are matrices; one with `parts: n` is n matrices of
            one shape on top of each other.
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
        dtype: Type of the matrix products.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, weight_decay: float, dtype: torch.dtype
    ):
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "parts": 1})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        # 1. Average the gradients over the steps, and split stacked matrices.
        batches: dict[torch.Size, list[tuple[Tensor, Tensor, float]]] = defaultdict(list)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = self._average(parameter, parameter.grad)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parts = (tensor.chunk(group["parts"]) for tensor in (parameter, update))
                for weight, gradient in zip(*parts, strict=True):
                    if weight.shape[0] < weight.shape[1]:  # transpose wide matrices
                        weight, gradient = weight.mT, gradient.mT
                    batches[weight.shape].append((weight, gradient, group["lr"]))
        # 2. Orthogonalize all matrices of one shape at once, and update the weights. An update has
        #    a root mean square of about 0.2, as AdamW's has (Liu et al., arXiv:2502.16982).
        for (rows, _), matrices in batches.items():
            weights, gradients, rates = zip(*matrices, strict=True)
            updates = orthogonalize(torch.stack(gradients).to(self.dtype))  # (N, rows, columns)
            for weight, update, rate in zip(weights, updates, rates, strict=True):
                weight.sub_(update, alpha=0.2 * math.sqrt(rows) * rate)

    def _average(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """Return the running mean of the gradients, one step ahead (Nesterov's momentum)."""
        state = self.state[parameter]
        if not state:
            state["mean"] = torch.zeros_like(parameter)
        state["mean"].lerp_(gradient, 1 - NESTEROV_MOMENTUM)
        return gradient.lerp(state["mean"], NESTEROV_MOMENTUM)
