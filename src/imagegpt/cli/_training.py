"""What `imagegpt train` and `imagegpt finetune` share: a run with its progress, its signals and its report."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.progress import BarColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from imagegpt.cli import _console, _loading, _progress, _unreadable
from imagegpt.cli.evaluate import print_scores

if TYPE_CHECKING:  # torch and what stands on it take seconds, and `--help` needs none of it
    from imagegpt.training.recipe import Recipe
    from imagegpt.training.run import Run, Told

_LN2 = 0.6931471805599453
_LINE_EVERY_STEPS = 100  # where stderr is no terminal


def train_in_folder(
    choose: "Callable[[], Recipe]", out: Path, command: Callable[[str], str], *, device: str | None, force: bool
) -> None:
    """Train a model, or go on with it, and report what it is worth on held-out images.

    Args:
        choose: gives the recipe; called when torch has been imported.
        out: the folder.
        command: what to type for this run, by its folder; without --force, which would begin it anew.
        device: as the user said.
        force: begin anew where a run is already.
    """
    check_libraries()
    with ExitStack() as lock:  # of the folder, until the card is written
        with stop_signals() as stopping:
            with _console.working("loading"):
                from imagegpt.data.broken_images import BROKEN_FILE
                from imagegpt.training.distributed import joined_world
                from imagegpt.training.run import Run

                _loading.quiet_libraries()
                recipe = choose()
            with joined_world(device) as world:
                with step_progress(recipe, shown=world.is_main) as show:
                    # Where torchrun has started the processes again, what is there is this very run.
                    begin_anew = force and not world.any(world.restarts > 0)
                    run = Run(recipe, out, world, force=begin_anew, on_step=show, should_stop=stopping)
                    if world.is_main:
                        _console.say(f"precision: {run.precision}")
                    for note in run.data.notes if world.is_main else ():
                        _console.say(note)
                    if world.is_main:
                        _unreadable.tell_broken(run.data.broken, out / BROKEN_FILE)
                    if world.is_main and run.resumed:
                        _console.say(f"going on after step {run.step:,}")
                    lock.enter_context(run.locked())
                    how = _train(run)
                is_main, is_alone = world.is_main, world.size == 1
        if not is_main:
            return
        if how == "stopped":
            _console.say(f"stopped after step {run.step:,}; go on with: {command(str(out))}")
            return
        if how == "early":
            _console.say(f"validation got no better for {recipe.watch.patience} times: ended after step {run.step:,}")
        with _progress.stopping(
            lambda: f"stopped while scoring; the model is in {out}, and {command(str(out))} scores it"
        ):
            _report(run, out, command(out.name))
        if run.data.broken and is_alone:  # torchrun would take it for a failure, and start all processes again
            raise typer.Exit(_unreadable.STATUS)


def check_libraries() -> None:
    """See that what training needs is installed.

    Raises: ValueError if not.
    """
    missing = [name for name in ("datasets", "matplotlib", "pydantic", "yaml") if find_spec(name) is None]
    if missing:
        raise ValueError(f"training needs the library {missing[0]}: pip install 'imagegpt[train]'")


def _train(run: "Run") -> str:
    """How the run ended."""
    try:
        return run.train().how
    except FloatingPointError as error:  # the recipe's fault, not ours
        raise ValueError(str(error)) from error


def _report(run: "Run", out: Path, command: str) -> None:
    """Score the best model, write its card, and name the next command."""
    from imagegpt.training.card import finish

    with _progress.image_progress("scoring") as progress:
        ending = finish(run, out, command, progress)
    if ending.accuracy is not None:
        _console.echo(
            f"accuracy on {ending.num_images:,} images of {run.data.name}: {ending.accuracy:.1%} ({ending.which})"
        )
    else:
        print_scores(ending.scores, ending.num_images, run.data.name, ending.which)
    _console.say(f"The model is in {out}. Next: {ending.next_command}")


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """On the first Ctrl-C or SIGTERM the run is to save and end; gives the function that says whether one came."""
    came = False

    def note(number: int, _: object) -> None:
        nonlocal came
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came = True
        # Not by a console: the signal may have come while one was writing.
        os.write(2, b"stopping after this step; Ctrl-C again stops at once\n")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def step_progress(recipe: "Recipe", shown: bool) -> Iterator[Callable[["Told"], None]]:
    """A bar on stderr, or a line now and then; gives the function to call after each step."""
    console = _console.stderr_console()
    columns = (
        _console.text_column("step {task.completed:,}/{task.total:,}"),
        BarColumn(),
        _console.text_column("{task.fields[told]}"),
        TimeElapsedColumn(),
        _console.text_column("left"),
        TimeRemainingColumn(),
    )
    total = recipe.training.num_steps
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("", total=total, told="")

        def show(told: "Told") -> None:
            text = _text(told, recipe.objective.name)
            bar.update(task, completed=told.step.step, told=text)
            step = told.step.step
            if not console.is_terminal and (told.step.validation or step % _LINE_EVERY_STEPS == 0 or step == total):
                _console.say(f"step {step:,}/{total:,}: {text}")

        yield show


def _text(told: "Told", objective: str) -> str:
    """Loss, best validation and speed of a run."""
    step, unit = told.step, "nats/image" if objective in ("joint", "joint-bert", "classification") else "nats/pixel"
    loss = step.metrics["total"]
    text = f"{loss:.3f} {unit}"
    if unit == "nats/pixel":
        text += f" = {loss / _LN2:.3f} bits/pixel"
    if told.best["total"] < float("inf"):
        text += f", best validation {told.best['total']:.4f}"
    if "correct" in step.metrics:
        text += f", {step.metrics['correct']:.0%} right"
    return text + (f", {step.images / step.elapsed_s:,.1f} images/s" if step.elapsed_s else "")
