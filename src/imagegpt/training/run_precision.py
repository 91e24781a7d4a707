"""The precision of a run: the main process resolves "auto" once, and the run keeps it when it is resumed."""

from dataclasses import replace
from pathlib import Path

from imagegpt.common.precision import Precision, PrecisionChoice, choose_precision
from imagegpt.training.distributed import DistributedContext
from imagegpt.training.recipe import Recipe
from imagegpt.training.recipe_io import parse_recipe_yaml, read_recipe


def resolve_precision(
    recipe: Recipe, recorded: Precision | None, context: DistributedContext
) -> tuple[Recipe, PrecisionChoice]:
    """Return the recipe with "auto" replaced by a precision, the same in all processes, and why it was chosen.

    Args:
        recipe: as the user gave it.
        recorded: the precision of the run, if it is resumed.
        context: the processes; the device of the main one decides.
    """
    choice = context.broadcast(choose_precision(recipe.training.precision, context.device, recorded))
    return replace(recipe, training=replace(recipe.training, precision=choice.precision)), choice


def precision_in_file(path: Path) -> Precision | None:
    """Return the precision in the recipe of a run; None if it cannot be read."""
    try:
        return _resolved(read_recipe(path))
    except (OSError, ValueError):  # damage is reported later
        return None


def precision_in_yaml(recipe: str) -> Precision | None:
    """Return the precision in the YAML of a recipe; None if it is invalid, or still "auto"."""
    try:
        return _resolved(parse_recipe_yaml(recipe, "the recipe"))
    except ValueError:
        return None


def _resolved(recipe: Recipe) -> Precision | None:
    precision = recipe.training.precision
    return None if precision == "auto" else precision
