"""`imagegpt train --find-lr`: which learning rate to train with."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from imagegpt.cli import _console, _loading, _training
from imagegpt.common.shell import free_name

if TYPE_CHECKING:  # torch and what stands on it take seconds, and `--help` needs none of it
    from imagegpt.training.lr_finder import RateSearch
    from imagegpt.training.recipe import Recipe


def find_rate(
    choose: "Callable[[], Recipe]",
    out: Path,
    command: Callable[[str], str],
    *,
    num_steps: int | None,
    device: str | None,
    force: bool,
) -> None:
    """Try rates by short runs, and print the largest that does no harm.

    Args:
        choose: gives the recipe; called when torch has been imported.
        out: the folder of the search.
        command: what to type to train this recipe, by the folder of the model.
        num_steps: of each trial; None leaves it to the search.
        device: as the user said.
        force: begin anew where a search is already.
    """
    _training.check_libraries()
    with _training.stop_signals() as stopping:
        with _console.working("loading"):
            from imagegpt.training.distributed import joined_world
            from imagegpt.training.lr_finder import RateSearch

            _loading.quiet_libraries()
            recipe = choose()
        with joined_world(device) as world:
            search = RateSearch(recipe, out, world, num_steps=num_steps, force=force)
            if world.is_main:
                _console.say(f"precision: {search.precision}")
            while (rate := search.next_rate()) is not None:
                with _training.step_progress(search.recipe_for(rate), shown=world.is_main) as show:
                    loss = search.try_rate(rate, on_step=show, should_stop=stopping)
                if world.is_main and loss is None:
                    _console.say("stopped; the same command goes on")
                if loss is None:
                    return
                if world.is_main:
                    _console.say(f"learning rate {rate:g}: validation {_shown(loss)}")
            if world.is_main:
                _print(search)
                told = f"{command(str(free_name('model')))} --set training.learning_rate={search.chosen:g}"
                _console.say(f"The picture is {out / 'rates.png'}. Next: {told}")


def _print(search: "RateSearch") -> None:
    table = Table("learning rate", "validation", "")
    for rate, loss in sorted(search.losses.items()):
        _console.add_row(table, f"{rate:g}", _shown(loss), "the largest without harm" if rate == search.chosen else "")
    _console.print_table(table)


def _shown(loss: float) -> str:
    return f"{loss:.4f}" if math.isfinite(loss) else "diverged"
