"""The precision of a run: the main process resolves "auto" once, and the run keeps it when it is resumed."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from imagegpt.common.precision import PrecisionChoice, choose_precision
from imagegpt.training.distributed import DistributedContext
from imagegpt.training.recipe import Recipe


def resolve_precision(
    recipe: Recipe, read_recorded: Callable[[], Recipe] | None, context: DistributedContext
) -> tuple[Recipe, PrecisionChoice]:
    """Return the recipe with "auto" replaced by a precision, the same in all processes, and why it was chosen.

    Args:
        recipe: as the user gave it.
        read_recorded: reads the recipe of the run that may be resumed; its errors are ignored here, and reported when
            the run is resumed.
        context: the processes; the device of the main one decides.
    """
    recorded = None
    if read_recorded is not None:
        with suppress(OSError, ValueError):
            precision = read_recorded().training.precision
            recorded = None if precision == "auto" else precision
    choice = context.broadcast(choose_precision(recipe.training.precision, context.device, recorded))
    return replace(recipe, training=replace(recipe.training, precision=choice.precision)), choice
