"""Muon: momentum whose matrix is replaced by an orthogonal one near it, so that no direction learns faster than others.

Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024, whose polynomial this is; the
factor on the rate is that of "Muon is scalable for LLM training", Liu et al., 2025. Beside `torch.optim.Muon`, which
computes in bfloat16 and takes matrix after matrix, this one

- computes in float32 on a CPU and on GPUs without instructions for bfloat16: on a CPU without them torch's took eight
  times as long (docs/log.md),
- takes all matrices of a shape at once,
- keeps matrices that are stored side by side, as queries, keys and values are, apart.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from imagegpt.common.precision import multiplies_bfloat16

# Five rounds of x -> a x + b x^3 + c x^5 on the singular values take all of [0.01, 1] to about 0.7 ... 1.2.
_ROUNDS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalized(matrices: Tensor) -> Tensor:
    """Take the singular values of matrices to about 1, and leave their singular vectors alone.

    Args:
        matrices: (..., n, m), of a floating dtype in which the products are computed.
    Returns: the same shape and dtype; a matrix of zeros stays one.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices  # the smaller Gram matrix
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * (gram @ gram)) @ x
    return x.mT if is_tall else x


class Muon(Optimizer):
    """Muon for weights stored (in, out); its updates are as large as AdamW's, so that both can share a rate.

    Args:
        groups: parameter groups of matrices; `num_maps` of a group says how many maps stand side by side in the columns
            of each, 1 if it is left out.
        lr: the rate.
        weight_decay: times the rate, what a step takes off each weight.
        momentum: of the gradients, with Nesterov's look ahead.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "num_maps": 1})
        for weight in (weight for group in self.param_groups for weight in group["params"]):
            # There from the beginning: of an optimiser without state, torch's checkpoints make a step of their own.
            self.state[weight]["momentum_buffer"] = torch.zeros_like(weight, requires_grad=False)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the weights that have gradients; `closure` is not called."""
        # Shapes are shared by groups: queries' matrices have the shape of attention's outputs.
        same_shape: dict[tuple[torch.Size, float], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for group in self.param_groups:
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                update = self._ahead(weight, group["momentum"])
                parts = (matrix.chunk(group["num_maps"], dim=-1) for matrix in (weight, update))
                for part, part_update in zip(*parts, strict=True):
                    same_shape[part.shape, group["lr"]].append((part, part_update))
        for (shape, lr), pairs in same_shape.items():
            updates = torch.stack([update for _, update in pairs])
            updates = orthogonalized(updates.to(_dtype_of_products(updates)))
            for (part, _), update in zip(pairs, updates, strict=True):
                part.add_(update, alpha=-0.2 * math.sqrt(max(shape)) * lr)

    def _ahead(self, weight: Tensor, momentum: float) -> Tensor:
        """The momentum with this step's gradient in it, and the gradient moved towards it."""
        assert weight.grad is not None, "the caller has looked"
        buffer = self.state[weight]["momentum_buffer"]
        buffer.lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(buffer, momentum)


def _dtype_of_products(matrices: Tensor) -> torch.dtype:
    device = matrices.device
    return torch.bfloat16 if device.type == "cuda" and multiplies_bfloat16(device) else torch.float32
