"""Learning-rate schedules: a linear warm-up, and what follows it."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from imagegpt.common.registry import Registry

if TYPE_CHECKING:
    from imagegpt.training.recipe import TrainingRecipe

Schedule = Callable[[float], float]  # from the fraction of the steps after the warm-up that is left, to a factor
SCHEDULES = Registry[Schedule](kind="schedule", group="imagegpt.schedules")
register_schedule = SCHEDULES.register


@register_schedule("cosine")
def cosine(fraction_left: float) -> float:
    """Half a cosine from 1 down to 0, as in the paper."""
    return 0.5 * (1 - math.cos(math.pi * fraction_left))


@register_schedule("constant")
def constant(fraction_left: float) -> float:
    """Always 1."""
    return 1.0


def learning_rate(step: int, recipe: "TrainingRecipe") -> float:
    """The learning rate of step 0, 1, ...: a linear warm-up to the maximum, then the recipe's schedule.

    A run that is resumed with more steps follows the schedule of the longer run from there on. With a constant rate it
    equals the longer run bit for bit; a cosine that had come down jumps up to the longer one.
    """
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    fraction_left = (recipe.num_steps - step) / max(1, recipe.num_steps - recipe.warmup_steps)
    return recipe.learning_rate * SCHEDULES.get(recipe.schedule)(fraction_left)
