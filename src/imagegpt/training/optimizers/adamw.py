"""AdamW, as in the paper."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from imagegpt.training.optimizers.base import OptimizerBuilder, has_decay, register_optimizer, trainable_weights

if TYPE_CHECKING:
    from imagegpt.training.recipe import TrainingRecipe


@register_optimizer
class AdamWBuilder(OptimizerBuilder):
    """AdamW for all weights."""

    name = "adamw"
    description = "AdamW"

    @classmethod
    def build(cls, model: nn.Module, recipe: "TrainingRecipe") -> list[Optimizer]:
        """See `OptimizerBuilder`."""
        return adamw(trainable_weights(model), recipe)


def adamw(weights: Iterable[tuple[nn.Module, Tensor]], recipe: "TrainingRecipe") -> list[Optimizer]:
    """Build AdamW for some weights of a model; no optimiser if there are none.

    Args:
        weights: with the modules that they belong to, which decide whether they decay.
        recipe: learning rate, betas, weight decay.
    """
    pairs = list(weights)
    decayed = [weight for module, weight in pairs if has_decay(module, weight)]
    others = [weight for module, weight in pairs if not has_decay(module, weight)]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        return []
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(recipe.beta1, recipe.beta2), fused=True)
    for weight in (weight for group in groups for weight in group["params"]):
        optimizer.state[weight] = {
            "step": torch.zeros((), device=weight.device),
            "exp_avg": torch.zeros_like(weight, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(weight, requires_grad=False),
        }
    return [optimizer]
