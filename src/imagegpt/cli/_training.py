"""What `imagegpt train` and `imagegpt finetune` share: libraries, signals, progress and the printed result."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.progress import BarColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from imagegpt.cli import _broken_images, _console, _loading, _progress
from imagegpt.cli.evaluate import print_scores
from imagegpt.training.callbacks import TrainingCallback

if TYPE_CHECKING:  # torch takes seconds to import, and `--help` does not need it
    from imagegpt.training.api import TrainingResult
    from imagegpt.training.recipe import Recipe
    from imagegpt.training.run import Run
    from imagegpt.training.trainer import Status, StepReport

_LOG_EVERY_STEPS = 100  # if stderr is not a terminal


@dataclass(frozen=True, kw_only=True)
class TrainingCommand:
    """What `train` and `finetune` do.

    Attributes:
        choose: returns the recipe; called when torch has been imported.
        out: the folder.
        command: returns the command for this recipe, given its folder; without --force, which would start over.
        device: as the user gave it.
        force: start over if the folder holds a run.
        as_json: print the result as JSON.
    """

    choose: "Callable[[], Recipe]"
    out: Path
    command: Callable[[str], str]
    device: str | None
    force: bool
    as_json: bool

    def run(self) -> None:
        """Train a model, or resume its training, and report its scores on held-out images."""
        out, command = self.out, self.command
        check_libraries()
        with ExitStack() as stack:
            should_stop = stack.enter_context(stop_signals())
            with _console.spinner("loading"):
                from imagegpt.training.api import train

                _loading.quiet_libraries()
                recipe = self.choose()
            callback = _ProgressCallback(stack, should_stop, command(str(out)))
            options = {"device": self.device, "force": self.force, "command": command(out.name)}
            try:
                result = train(recipe, out, callback=callback, **options)
            except FloatingPointError as error:  # the recipe is at fault
                raise ValueError(str(error)) from error
        if not result.is_main:
            return
        if self.as_json:
            _console.print_json(result.to_dict())
        _print_result(result, recipe, command(str(out)), callback.run.data.name, as_json=self.as_json)
        # torchrun would take an exit code for a failure, and restart all processes.
        if result.num_broken_images and result.status != "stopped" and callback.run.context.world_size == 1:
            raise typer.Exit(_broken_images.EXIT_STATUS)


class _ProgressCallback(TrainingCallback):
    """Shows a run on stderr, and stops it when asked.

    Args:
        stack: closes the progress bars.
        should_stop: returns whether the user asked to stop.
        command: that resumes the run.
    """

    def __init__(self, stack: ExitStack, should_stop: Callable[[], bool], command: str) -> None:
        self.should_stop, self._command = should_stop, command
        self._stack = stack.enter_context(ExitStack())

    def on_start(self, run: "Run") -> None:
        """Say what will be done, and start the progress bar."""
        self.run = run
        is_main = run.context.is_main
        if is_main:
            _console.print_stderr(f"precision: {run.precision}")
            for note in run.data.notes:
                _console.print_stderr(note)
            _broken_images.report_broken(run.data.broken, run.out / "broken-images.txt")
            if run.resumed:
                _console.print_stderr(f"resuming after step {run.step:,}")
        best = lambda: run.state.best["loss"]  # noqa: E731
        self.on_step = self._stack.enter_context(step_progress(run.recipe, is_main, best))

    def on_training_end(self, status: "Status") -> None:
        """Replace the progress bar by one for the evaluation, which a signal stops at once."""
        self._stack.close()
        if status != "stopped" and self.run.context.is_main:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            message = f"stopped while scoring; the model is in {self.run.out}, and {self._command} scores it"
            self._stack.enter_context(_progress.on_interrupt(lambda: message))
            self.on_evaluation = self._stack.enter_context(_progress.image_progress("scoring"))


def check_libraries() -> None:
    """Check that the libraries that training needs are installed.

    Raises: ValueError if not.
    """
    missing = [name for name in ("datasets", "matplotlib", "pydantic", "yaml") if find_spec(name) is None]
    if missing:
        raise ValueError(f"training needs the library {missing[0]}: pip install 'imagegpt[train]'")


def _print_result(result: "TrainingResult", recipe: "Recipe", command: str, data: str, *, as_json: bool) -> None:
    if result.status == "stopped":
        _console.print_stderr(f"stopped after step {result.steps:,}; resume with: {command}")
        return
    if result.status == "early_stopped":
        patience = recipe.monitoring.patience
        _console.print_stderr(f"no improvement in {patience} validations: stopped after step {result.steps:,}")
    if not as_json and result.accuracy is not None:
        images = f"{result.num_images:,} images of {data}"
        _console.echo(f"accuracy on {images}: {result.accuracy:.1%} ({result.split})")
    elif not as_json and result.scores:
        print_scores(list(result.scores), result.num_images, data, str(result.split))
    _console.print_stderr(f"The model is in {result.folder}. Next: {result.next_command}")


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Context manager that turns the first Ctrl-C or SIGTERM into a request to save and stop.

    Yields: a function that returns whether there was one.
    """
    received = False

    def handle(number: int, _: object) -> None:
        nonlocal received
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received = True
        # Not through a console: the signal may interrupt one that is writing.
        os.write(2, b"stopping after this step; Ctrl-C again stops at once\n")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def step_progress(
    recipe: "Recipe", shown: bool, best: "Callable[[], float]"
) -> Iterator[Callable[["StepReport"], None]]:
    """Show a progress bar on stderr, or log a line now and then.

    Args:
        recipe: of the run.
        shown: False shows nothing.
        best: returns the best validation loss so far.
    Yields: the function to call after each step.
    """
    console, total = _console.stderr_console(), recipe.training.num_steps
    columns = (
        _console.text_column("step {task.completed:,}/{task.total:,}"),
        BarColumn(),
        _console.text_column("{task.fields[status]}"),
        TimeElapsedColumn(),
        _console.text_column("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("", total=total, status="")

        def show(report: "StepReport") -> None:
            text, step = recipe.objective.format_metrics(report.metrics), report.step
            if best() < float("inf"):
                text += f", best validation {best():.4f}"
            if report.elapsed_s:
                text += f", {report.images / report.elapsed_s:,.1f} images/s"
            bar.update(task, completed=step, status=text)
            if not console.is_terminal and (report.validation or step % _LOG_EVERY_STEPS == 0 or step == total):
                _console.print_stderr(f"step {step:,}/{total:,}: {text}")

        yield show
