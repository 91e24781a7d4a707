"""Updating weights: AdamW and Muon, the rate's way up and down, and an average of the weights."""

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from imagegpt.model.layers import ImageGPTAttention, Projection
from imagegpt.training.muon import Muon
from imagegpt.training.recipe import TrainingRecipe


def learning_rate(step: int, recipe: TrainingRecipe) -> float:
    """The rate of step 0, 1, ...: up a line to the highest, then down half a cosine that ends at 0, or level.

    A run that is resumed with more steps takes the rates of the longer run from there on. With a constant rate it is
    the longer run, bit for bit; a cosine that had come down rises to the curve of the longer one, and ends at 0 again.
    """
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    if recipe.schedule == "constant":
        return recipe.learning_rate
    left = (recipe.num_steps - step) / max(1, recipe.num_steps - recipe.warmup_steps)
    return recipe.learning_rate * 0.5 * (1 - math.cos(math.pi * left))


def build_optimizers(model: nn.Module, recipe: TrainingRecipe) -> list[Optimizer]:
    """AdamW for all weights that are trained, or Muon for the projections and AdamW for the rest.

    Matrices decay; embeddings, biases and gains do not. Muon's rate is scaled to updates as large as AdamW's, so that
    both have the recipe's ("Muon is scalable for LLM training", Liu et al., 2025). Moments are there from the
    beginning: of an optimiser without any, torch's checkpoints make a step of their own.
    """
    matrices: dict[int, list[Tensor]] = defaultdict(list)  # by the number of maps side by side in them
    decayed: list[Tensor] = []
    rest: list[Tensor] = []
    seen = set[int]()
    num_maps: dict[nn.Module, int] = {
        module.c_attn: 2 if module.is_cross_attention else 3
        for module in model.modules()
        if isinstance(module, ImageGPTAttention)
    }
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            if not weight.requires_grad or id(weight) in seen:
                continue
            seen.add(id(weight))
            is_matrix = weight.ndim > 1 and not isinstance(module, nn.Embedding)
            by_muon = is_matrix and isinstance(module, Projection) and recipe.optimizer == "muon"
            (matrices[num_maps.get(module, 1)] if by_muon else decayed if is_matrix else rest).append(weight)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]  # of adapters, all weights are matrices
    optimizers: list[Optimizer] = []
    if groups:
        optimizers.append(_adamw(groups, recipe))
    if matrices:
        by_maps = [{"params": weights, "num_maps": number} for number, weights in matrices.items()]
        optimizers.append(Muon(by_maps, recipe.learning_rate, recipe.weight_decay))
    return optimizers


def _adamw(groups: list[dict[str, Any]], recipe: TrainingRecipe) -> torch.optim.AdamW:
    betas = (recipe.beta1, recipe.beta2)
    adamw = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=betas, fused=True)
    for weight in (weight for group in groups for weight in group["params"]):
        adamw.state[weight] = {
            "step": torch.zeros((), device=weight.device),
            "exp_avg": torch.zeros_like(weight, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(weight, requires_grad=False),
        }
    return adamw


def local(weight: Tensor) -> Tensor:
    """What this process has of a weight: all of it, or its shard, in the memory that the weight is in."""
    return cast(Tensor, weight.to_local()) if isinstance(weight, DTensor) else weight


def whole(value: Tensor) -> Tensor:
    """A value that may be spread over processes, on this one."""
    return cast(Tensor, value.full_tensor()) if isinstance(value, DTensor) else value


class AveragedWeights:
    """A running average of a model's weights; early on it forgets faster, so that it forgets how they were drawn.

    Args:
        model: whose weights are followed. Where they are shards, the average is sharded alike.
        decay: of the average, per step, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._model = model
        self.weights = {name: weight.detach().clone() for name, weight in self._trained()}

    def _trained(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, weight) for name, weight in self._model.named_parameters() if weight.requires_grad)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after step 0, 1, ..."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, weight in self._trained():
            local(self.weights[name]).lerp_(local(weight), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While it lasts, the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._trained():
            mine, average = local(weight), local(self.weights[name])
            kept = mine.clone()
            mine.copy_(average)
            average.copy_(kept)
