"""Hooks of the caller into a training run. Does not import torch, which takes seconds."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imagegpt.training.run import Run
    from imagegpt.training.trainer import Status, StepReport


class TrainingCallback:
    """Hooks into a run; the methods do nothing unless a subclass overrides them."""

    def on_start(self, run: "Run") -> None:
        """Called in every process before the first step."""

    def on_step(self, report: "StepReport", /) -> None:
        """Called in the main process after each step."""

    def should_stop(self) -> bool:
        """Polled after each step, in every process: True saves a checkpoint and ends the run."""
        return False

    def on_training_end(self, status: "Status") -> None:
        """Called in every process after the last step."""

    def on_evaluation(self, done: int, total: int, /) -> None:
        """Called in the main process while the best model is scored, with images scored and images in all."""
