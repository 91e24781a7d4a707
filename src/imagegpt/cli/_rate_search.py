"""`imagegpt train --find-lr`: search for a learning rate."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from imagegpt.cli import _broken_images, _console, _loading, _training
from imagegpt.common import shell
from imagegpt.training.callbacks import TrainingCallback

if TYPE_CHECKING:  # torch takes seconds to import, and `--help` does not need it
    from imagegpt.training.lr_finder import LearningRateSearch


def find_rate(training: _training.TrainingCommand, num_steps: int | None) -> None:
    """Try learning rates in short runs, and print the largest that does not hurt validation.

    Args:
        training: the recipe to try, and the folder of the search.
        num_steps: of each trial; None leaves it to the search.
    """
    _training.check_libraries()
    with _training.stop_signals() as should_stop:
        with _console.spinner("loading"):
            from imagegpt.training.distributed import distributed_context
            from imagegpt.training.lr_finder import LearningRateSearch

            _loading.quiet_libraries()
            recipe = training.choose()
        with distributed_context(training.device) as context:
            search = LearningRateSearch(recipe, training.out, context, num_steps=num_steps, force=training.force)
            is_finished = _run_trials(search, should_stop, shown=context.is_main)
    if not context.is_main or not is_finished:
        return
    if training.as_json:
        _console.print_json(_to_dict(search))
    else:
        _print(search)
    train = f"{training.command(str(shell.unused_path('model')))} --set training.learning_rate={search.best_rate:g}"
    _console.print_stderr(f"The picture is {search.out / 'rates.png'}. Next: {train}")
    if (search.out / "broken-images.txt").is_file() and context.world_size == 1:
        raise typer.Exit(_broken_images.EXIT_STATUS)


def _run_trials(search: "LearningRateSearch", should_stop: Callable[[], bool], *, shown: bool) -> bool:
    """Run trials until the answer is known; False if the user stopped the search."""
    if shown:
        _console.print_stderr(f"precision: {search.precision}")
    callback, reported = TrainingCallback(), False
    callback.should_stop = should_stop
    while (rate := search.next_rate()) is not None:
        with _training.step_progress(search.recipe_for(rate), shown, lambda: math.inf) as callback.on_step:
            loss = search.try_rate(rate, callback)
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
