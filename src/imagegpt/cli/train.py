"""`imagegpt train`: from a recipe to a model in a folder. The same command goes on with what was stopped."""

import os
import shlex
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from imagegpt.cli import _shared
from imagegpt.cli.evaluate import print_scores

if TYPE_CHECKING:  # torch and what stands on it take seconds, and `--help` needs none of it
    from imagegpt.runs import Run, Told
    from imagegpt.training.recipes import Recipe

_LN2 = 0.6931471805599453
_LINE_EVERY_STEPS = 100  # where stderr is no terminal


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (digits, pictures ...) or .yaml file.")],
    out: Annotated[Path, typer.Option(help="The folder to make, or to go on in.", show_default=False)],
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change a key, as in training.batch_size=16. May be repeated.")
    ] = None,
    device: _shared.DeviceOption = None,
    force: Annotated[bool, typer.Option("--force", help="Begin anew where a run is already.")] = False,
) -> None:
    """Train a model, and report the likelihood of held-out images.

    It may be killed: the same command goes on where the last checkpoint is. With torchrun it trains on many processes.
    """
    _check_libraries()
    with _stop_signals() as stopping:
        with _shared.working("loading"):
            from imagegpt.runs import Run
            from imagegpt.training.reading import find_recipe, read_recipe
            from imagegpt.training.world import joined_world

            _shared.quiet_libraries()
        read = read_recipe(find_recipe(recipe), changes or ())
        with joined_world(device) as world:
            with _progress(read, shown=world.is_main) as show:
                # Where torchrun has started the processes again, what is there is this very run.
                begin_anew = force and not world.any(world.restarts > 0)
                with _warnings_said():
                    run = Run(read, out, world, force=begin_anew, on_step=show, should_stop=stopping)
                if world.is_main and run.resumed:
                    _say(f"going on after step {run.step:,}")
                how = _train(run)
            if not world.is_main:
                return
            if how == "stopped":
                _say(f"stopped after step {run.step:,}; go on with: {_command(recipe, str(out), changes)}")
                return
            if how == "early":
                _say(f"validation got no better for {read.watch.patience} times: ended after step {run.step:,}")
            _report(run, out, _command(recipe, out.name, changes))


def _train(run: "Run") -> str:
    """How the run ended."""
    try:
        return run.train().how
    except FloatingPointError as error:  # the recipe's fault, not ours
        raise ValueError(str(error)) from error


def _command(recipe: str, out: str, changes: Sequence[str] | None) -> str:
    """What to type for this run; without --force, which would begin it anew."""
    return shlex.join(
        ["imagegpt", "train", recipe, "--out", out, *(word for c in changes or () for word in ("--set", c))]
    )


def _report(run: "Run", out: Path, command: str) -> None:
    """Score the best model on test images, write its card, and name the next command."""
    from imagegpt.runs.card import finish

    with _shared.working("scoring"):
        ending = finish(run, out, command)
    if ending.accuracy is not None:
        typer.echo(f"{ending.accuracy:.1%} of {ending.num_images:,} {ending.which} images are classified rightly")
    else:
        print_scores(ending.scores, ending.num_images, run.data.name, ending.which)
    _say(f"The model is in {out}. Next: {ending.next_command}")


def _check_libraries() -> None:
    missing = [name for name in ("datasets", "matplotlib", "pydantic", "yaml") if find_spec(name) is None]
    if missing:
        raise ValueError(f"training needs the library {missing[0]}: pip install 'imagegpt[train]'")


@contextmanager
def _warnings_said() -> Iterator[None]:
    """Warnings for the user as lines of their own, without where in the code they come from."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for one in caught:
        if one.category is UserWarning:
            _say(f"warning: {one.message}")


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
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
def _progress(recipe: "Recipe", shown: bool) -> Iterator[Callable[["Told"], None]]:
    """A bar on stderr, or a line now and then; gives the function to call after each step."""
    console = _shared.stderr_console()
    columns = (
        TextColumn("step {task.completed:,}/{task.total:,}"),
        BarColumn(),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
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
                _say(f"step {step:,}/{total:,}: {text}")

        yield show


def _text(told: "Told", objective: str) -> str:
    """Loss, best validation and speed of a run."""
    step, unit = told.step, "nats/image" if objective in ("joint", "classification") else "nats/pixel"
    loss = step.metrics["total"]
    text = f"{loss:.3f} {unit}"
    if unit == "nats/pixel":
        text += f" = {loss / _LN2:.3f} bits/pixel"
    if told.best["total"] < float("inf"):
        text += f", best validation {told.best['total']:.4f}"
    if "correct" in step.metrics:
        text += f", {step.metrics['correct']:.0%} right"
    return text + (f", {step.images / step.elapsed_s:,.1f} images/s" if step.elapsed_s else "")


def _say(text: str) -> None:
    _shared.stderr_console().print(text, markup=False, soft_wrap=True)
