"""`imagegpt train --find-lr`: search for a learning rate."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from imagegpt.cli import _broken_images, _console, _loading, _training
from imagegpt.common import shell

if TYPE_CHECKING:  # torch takes seconds to import, and `--help` does not need it
    from imagegpt.training.lr_finder import LearningRateSearch
    from imagegpt.training.recipe import Recipe


def find_rate(
    choose: "Callable[[], Recipe]",
    out: Path,
    command: Callable[[str], str],
    *,
    num_steps: int | None,
    device: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Try learning rates in short runs, and print the largest that does not hurt validation.

    Args:
        choose: returns the recipe; called when torch has been imported.
        out: the folder of the search.
        command: returns the command that trains this recipe, given a folder.
        num_steps: of each trial; None leaves it to the search.
        device: as the user gave it.
        force: start over if the folder holds a search.
        as_json: print the result as JSON.
    """
    _training.check_libraries()
    with _training.stop_signals() as should_stop:
        with _console.spinner("loading"):
            from imagegpt.training.distributed import distributed_context
            from imagegpt.training.lr_finder import LearningRateSearch

            _loading.quiet_libraries()
            recipe = choose()
        with distributed_context(device) as context:
            search = LearningRateSearch(recipe, out, context, num_steps=num_steps, force=force)
            is_finished = _run_trials(search, should_stop, shown=context.is_main)
    if not context.is_main or not is_finished:
        return
    if as_json:
        _console.print_json(_to_dict(search))
    else:
        _print(search)
    train = f"{command(str(shell.unused_path('model')))} --set training.learning_rate={search.best_rate:g}"
    _console.print_stderr(f"The picture is {out / 'rates.png'}. Next: {train}")
    if (out / "broken-images.txt").is_file() and context.world_size == 1:
        raise typer.Exit(_broken_images.EXIT_STATUS)


def _run_trials(search: "LearningRateSearch", should_stop: Callable[[], bool], *, shown: bool) -> bool:
    """Run trials until the answer is known; False if the user stopped the search."""
    if shown:
        _console.print_stderr(f"precision: {search.precision}")
    reported = False
    while (rate := search.next_rate()) is not None:
        with _training.step_progress(search.recipe_for(rate), shown, lambda: math.inf) as show:
            loss = search.try_rate(rate, on_step=show, should_stop=should_stop)
        if shown and search.broken and not reported:
            _broken_images.report_broken(search.broken, search.out / "broken-images.txt")
            reported = True
        if loss is None:
            if shown:
                _console.print_stderr("stopped; the same command resumes the search")
            return False
        if shown:
            _console.print_stderr(f"learning rate {rate:g}: validation {_format_loss(loss)}")
    return True


def _to_dict(search: "LearningRateSearch") -> dict[str, Any]:
    trials = [{"learning_rate": rate, "validation_loss": loss} for rate, loss in sorted(search.losses.items())]
    return {"learning_rate": search.best_rate, "trials": trials, "folder": str(search.out)}


def _print(search: "LearningRateSearch") -> None:
    table = Table("learning rate", "validation", "")
    for rate, loss in sorted(search.losses.items()):
        _console.add_row(
            table, f"{rate:g}", _format_loss(loss), "largest that does not hurt" if rate == search.best_rate else ""
        )
    _console.print_table(table)


def _format_loss(loss: float) -> str:
    return f"{loss:.4f}" if math.isfinite(loss) else "diverged"
