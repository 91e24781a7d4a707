"""The log of a run, a line of JSON per step, and a picture of its losses."""

import dataclasses
import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from imagegpt.common import ranges
from imagegpt.common.pydantic_ranges import InRange
from imagegpt.figures.plots import loss_plot
from imagegpt.files.atomic import atomic_write
from imagegpt.files.schemas import parse_json, validate
from imagegpt.training.trainer import StepReport


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """The fields of a line that the picture shows.

    Attributes:
        step: completed steps.
        metrics: of the batch.
        validation: of held-out images, if there was a validation after this step.
    """

    step: Annotated[int, InRange(ranges.STEPS)]
    metrics: dict[str, float]
    validation: dict[str, float] = field(default_factory=dict)


class TrainingLog:
    """Appends to the log of a run, and keeps the losses in memory for the picture (16 bytes per step).

    Args:
        path: of the log. It is read once; its lines after `last_step` are removed, because those steps are repeated.
        last_step: at which the run is resumed; 0 starts over.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        self._path = path
        self._steps, self._losses = array("q"), array("d")
        self._validation: dict[int, float] = {}
        if path.is_file():
            kept = [(text, line) for text, line in read_log(path) if line.step <= last_step]
            for _, line in kept:
                self._record(line.step, line.metrics, line.validation)
            atomic_write(path, "".join(text for text, _ in kept).encode(), "the log")

    def append(self, report: StepReport, *, flush: bool) -> None:
        """Add a line.

        Args:
            report: of the step.
            flush: to disk, so that the log survives a power failure as checkpoints do.
        """
        line = {name: value for name, value in dataclasses.asdict(report).items() if value is not None}
        with self._path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
            if flush:
                log.flush()
                os.fsync(log.fileno())
        self._record(report.step, report.metrics, report.validation or {})

    def draw_curve(self, path: Path) -> None:
        """Draw the losses of all steps and validations as a PNG. Of a step repeated after a spike the last counts."""
        losses = list(zip(self._steps, self._losses, strict=True))
        atomic_write(path, loss_plot(losses, list(self._validation.items())), "the curve")

    def _record(self, step: int, metrics: dict[str, float], validation: dict[str, float]) -> None:
        while self._steps and self._steps[-1] >= step:  # a spike undid these steps
            self._validation.pop(self._steps.pop(), None)
            self._losses.pop()
        if "loss" in metrics:
            self._steps.append(step)
            self._losses.append(metrics["loss"])
            if "loss" in validation:
                self._validation[step] = validation["loss"]


def read_log(path: Path) -> Iterator[tuple[str, LogLine]]:
    """Yield the lines of a log, as text and parsed; damaged ones are skipped.

    A process that was killed may have left its last line incomplete.
    """
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                yield line, validate(parse_json(line, str(path)), LogLine, str(path))
            except ValueError:
                continue
