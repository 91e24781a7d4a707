"""What happens during a run besides training: callbacks of the caller, samples, and pictures that may fail."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from imagegpt.common.text import printable
from imagegpt.figures.grids import sample_grid
from imagegpt.files.atomic import atomic_write
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.sampling import Sampler, image_seed

if TYPE_CHECKING:
    from imagegpt.training.run import Run
    from imagegpt.training.trainer import Status, StepReport


class TrainingCallback:
    """Hooks into a run; the methods do nothing unless a subclass overrides them."""

    def on_start(self, run: "Run") -> None:
        """Called in every process before the first step."""

    def on_step(self, report: "StepReport") -> None:
        """Called in the main process after each step."""

    def should_stop(self) -> bool:
        """Polled after each step, in every process: True saves a checkpoint and ends the run."""
        return False

    def on_training_end(self, status: "Status") -> None:
        """Called in every process after the last step."""

    def on_evaluation(self, done: int, total: int) -> None:
        """Called in the main process while the best model is scored, with images scored and images in all."""


def save_samples(
    model: ImageGPTForCausalImageModeling, processor: ImageGPTImageProcessor, num: int, path: Path
) -> None:
    """Sample images and save them in a grid; the seeds are the first ones of seed 0.

    Args:
        model: on the device to sample on. It is modified and must not be used afterwards.
        processor: turns ids into images.
        num: of images.
        path: of the PNG; its folder is created.
    """
    sampler = Sampler(model, in_place=True)
    ids = sampler.generate(None, seeds=[image_seed(0, index) for index in range(num)])
    path.parent.mkdir(exist_ok=True)
    content = io.BytesIO()
    sample_grid(processor.decode(ids)).save(content, format="PNG")
    atomic_write(path, content.getvalue(), "the samples")


@contextmanager
def warn_on_failure(what: str) -> Iterator[None]:
    """Context manager that turns errors into a warning, for pictures that a run can do without.

    Args:
        what: would be missing.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - plotting libraries raise many kinds
        reason = printable(" ".join(str(error).split())) or type(error).__name__
        warnings.warn(f"there is no {what} ({reason})", stacklevel=3)
