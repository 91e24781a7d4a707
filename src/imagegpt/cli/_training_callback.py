"""The callback that shows a training run on the terminal. Imports torch, which takes seconds."""

import signal
from collections.abc import Callable
from contextlib import ExitStack
from typing import Self

from imagegpt.cli import _broken_images, _console, _progress, _training
from imagegpt.data.broken_images import BROKEN_FILE
from imagegpt.training.callbacks import TrainingCallback
from imagegpt.training.run import Run
from imagegpt.training.trainer import Status, StepReport


class ProgressCallback(TrainingCallback):
    """Shows a run on stderr, and stops it when asked. Use it as a context manager around the call of `train`.

    Args:
        should_stop: returns whether the user asked to stop.
        command: that resumes the run.
    """

    def __init__(self, should_stop: Callable[[], bool], command: str) -> None:
        self._should_stop, self._command = should_stop, command
        self._stack = ExitStack()
        self._show_step: Callable[[StepReport], None] = lambda _: None
        self._show_evaluation: Callable[[int, int], None] = lambda *_: None
        self.is_alone, self.data_name = True, ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> bool | None:
        return self._stack.__exit__(*error)  # pyright: ignore[reportArgumentType]

    def on_start(self, run: Run) -> None:
        """Say what will be done, and start the progress bar."""
        self._run, self.is_alone, self.data_name = run, run.context.world_size == 1, run.data.name
        is_main = run.context.is_main
        if is_main:
            _console.print_stderr(f"precision: {run.precision}")
            for note in run.data.notes:
                _console.print_stderr(note)
            _broken_images.report_broken(run.data.broken, run.out / BROKEN_FILE)
            if run.resumed:
                _console.print_stderr(f"resuming after step {run.step:,}")
        best = lambda: run.state.best["loss"]  # noqa: E731
        self._show_step = self._stack.enter_context(_training.step_progress(run.recipe, is_main, best))

    def on_step(self, report: StepReport) -> None:
        """Update the progress bar."""
        self._show_step(report)

    def should_stop(self) -> bool:
        """Return whether the user asked to stop."""
        return self._should_stop()

    def on_training_end(self, status: Status) -> None:
        """Replace the progress bar by one for the evaluation, which a signal stops at once."""
        self._stack.close()
        if status != "stopped" and self._run.context.is_main:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            message = f"stopped while scoring; the model is in {self._run.out}, and {self._command} scores it"
            self._stack.enter_context(_progress.on_interrupt(lambda: message))
            self._show_evaluation = self._stack.enter_context(_progress.image_progress("scoring"))

    def on_evaluation(self, done: int, total: int) -> None:
        """Update the progress bar."""
        self._show_evaluation(done, total)
