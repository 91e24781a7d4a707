"""Muon: momentum, orthogonalised, so that no direction of a weight matrix learns faster than others.

Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024, for the polynomial; "Muon is
scalable for LLM training", Liu et al., 2025, for the factor on the learning rate. Unlike `torch.optim.Muon`, which
computes in bfloat16 and updates one matrix at a time, this one

- computes in float32 on CPUs and on GPUs without bfloat16 instructions: on a CPU without them torch's took eight times
  as long (docs/log.md),
- updates all matrices of a shape together,
- treats matrices that are stored side by side, such as those of queries, keys and values, as separate ones.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from imagegpt.common.precision import has_fast_bfloat16
from imagegpt.model.layers import ImageGPTAttention, Projection
from imagegpt.training.optimizers.adamw import adamw
from imagegpt.training.optimizers.base import OptimizerBuilder, has_decay, register_optimizer, trainable_weights

if TYPE_CHECKING:
    from imagegpt.training.recipe import TrainingRecipe

# Five iterations of x -> a x + b x^3 + c x^5 on the singular values take all of [0.01, 1] to about 0.7 ... 1.2.
_ITERATIONS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315


@register_optimizer
class MuonBuilder(OptimizerBuilder):
    """Muon for the projections, and AdamW for everything else.

    Muon's learning rate is scaled to updates as large as AdamW's, so that both use the recipe's.
    """

    name = "muon"
    description = "Muon for the projections, and AdamW"
    supports_sharding = False  # it orthogonalises whole matrices
    supports_adapters = False  # they leave the projections unchanged

    @classmethod
    def build(cls, model: nn.Module, recipe: "TrainingRecipe") -> list[Optimizer]:
        """See `OptimizerBuilder`."""
        num_maps: dict[nn.Module, int] = {
            module.c_attn: 2 if module.is_cross_attention else 3
            for module in model.modules()
            if isinstance(module, ImageGPTAttention)
        }
        matrices: dict[int, list[Tensor]] = defaultdict(list)  # by the number of maps side by side in them
        others: list[tuple[nn.Module, Tensor]] = []
        for module, weight in trainable_weights(model):
            if isinstance(module, Projection) and has_decay(module, weight):
                matrices[num_maps.get(module, 1)].append(weight)
            else:
                others.append((module, weight))
        optimizers = adamw(others, recipe)
        if matrices:
            groups = [{"params": weights, "num_maps": number} for number, weights in matrices.items()]
            optimizers.append(Muon(groups, recipe.learning_rate, recipe.weight_decay))
        return optimizers


def orthogonalize(matrices: Tensor) -> Tensor:
    """Move the singular values of matrices close to 1, keeping their singular vectors.

    Args:
        matrices: (..., n, m), of a floating dtype, which is also that of the products.
    Returns: matrices of the same shape and dtype; a zero matrix stays zero.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices  # the smaller Gram matrix
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * (gram @ gram)) @ x
    return x.mT if is_tall else x


class Muon(Optimizer):
    """Muon for weights stored (in, out); its updates are as large as AdamW's, so that both can use one learning rate.

    Args:
        groups: parameter groups of matrices; `num_maps` is the number of maps stored side by side in the columns of
            each, 1 by default.
        lr: learning rate.
        weight_decay: decoupled, as in AdamW.
        momentum: Nesterov momentum of the gradients.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "num_maps": 1})
        for weight in (weight for group in self.param_groups for weight in group["params"]):
            self.state[weight]["momentum_buffer"] = torch.zeros_like(weight, requires_grad=False)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the weights that have gradients; `closure` is ignored."""
        # Groups share shapes: the matrix of the queries has the shape of attention's output projection.
        same_shape: dict[tuple[torch.Size, float], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for group in self.param_groups:
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                update = self._nesterov_update(weight, group["momentum"])
                maps = (matrix.chunk(group["num_maps"], dim=-1) for matrix in (weight, update))
                for map_weight, map_update in zip(*maps, strict=True):
                    same_shape[map_weight.shape, group["lr"]].append((map_weight, map_update))
        for (shape, lr), pairs in same_shape.items():
            updates = torch.stack([update for _, update in pairs])
            updates = orthogonalize(updates.to(_matmul_dtype(updates)))
            for (map_weight, _), update in zip(pairs, updates, strict=True):
                map_weight.add_(update, alpha=-0.2 * math.sqrt(max(shape)) * lr)

    def _nesterov_update(self, weight: Tensor, momentum: float) -> Tensor:
        """Update the momentum by this step's gradient, and return the gradient moved towards it."""
        assert weight.grad is not None, "step() skips weights without gradients"
        buffer = self.state[weight]["momentum_buffer"]
        buffer.lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(buffer, momentum)


def _matmul_dtype(matrices: Tensor) -> torch.dtype:
    device = matrices.device
    return torch.bfloat16 if device.type == "cuda" and has_fast_bfloat16(device) else torch.float32
