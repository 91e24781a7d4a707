"""Which precision a run computes in: decided once, by the main process, and kept for as long as the run lasts."""

from dataclasses import replace
from pathlib import Path

from imagegpt.common.precision import Precision, PrecisionChoice, choose_precision
from imagegpt.training.distributed import World
from imagegpt.training.recipe import Recipe
from imagegpt.training.recipe_io import read_recipe, recipe_from_text


def with_precision(recipe: Recipe, recorded: Precision | None, world: World) -> tuple[Recipe, PrecisionChoice]:
    """The recipe with the precision that "auto" stands for, the same in all processes, and why it is this one.

    Args:
        recipe: as it was asked for.
        recorded: what the run was begun in, if it is resumed.
        world: the processes; the device of the main one decides.
    """
    choice = world.told(choose_precision(recipe.training.precision, world.device, recorded))
    return replace(recipe, training=replace(recipe.training, precision=choice.precision)), choice


def precision_in_file(path: Path) -> Precision | None:
    """What a recipe that was written beside a run says it was begun in; None if that cannot be read."""
    try:
        return _decided(read_recipe(path))
    except (OSError, ValueError):  # what is damaged is told later
        return None


def precision_in_text(recipe: str) -> Precision | None:
    """What `Recipe.resolved` said; None if it is no recipe, or one in which nothing was decided yet."""
    try:
        return _decided(recipe_from_text(recipe, "the recipe"))
    except ValueError:
        return None


def _decided(recipe: Recipe) -> Precision | None:
    precision = recipe.training.precision
    return None if precision == "auto" else precision
