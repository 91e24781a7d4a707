"""What a training run has come to, beside its tensors: the part of a checkpoint that is JSON."""

import math
from collections import deque
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from imagegpt.files.schemas import validate

_RECENT_STEPS = 100  # whose mean loss a spike is measured against

Metrics = dict[str, float]


@dataclass
class Progress:
    """What a run has come to, beside its tensors; goes through JSON.

    Attributes:
        step: steps done.
        best_step: after which validation was best.
        best: what it was then; "total" is infinite before the first.
        last: the last validation.
        worse: validations since.
        skipped: by how many steps the order of the images is ahead, because spikes were skipped.
        rollbacks: spikes so far.
        recent: losses of the last steps.
        trained_s: seconds that all processes before this one trained.
    """

    step: int = 0
    best_step: int = 0
    best: Metrics = field(default_factory=lambda: {"total": math.inf})
    last: Metrics = field(default_factory=dict)
    worse: int = 0
    skipped: int = 0
    rollbacks: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT_STEPS))
    trained_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {**asdict(self), "recent": list(self.recent)}

    @classmethod
    def from_json(cls, content: dict[str, Any], what: str = "the progress") -> "Progress":
        """From a checkpoint.

        Args:
            content: as `as_json` gives it.
            what: where it is from, for the error.
        Raises: ValueError, which names the field, if it is not as it should be.
        """
        if missing := sorted({one.name for one in fields(cls)} - content.keys()):
            raise ValueError(f"{what} has no {missing[0]}: start over with --force")
        try:
            progress = validate(content, cls, what)
        except ValueError as error:
            raise ValueError(f"{error}; start over with --force") from error
        return replace(progress, recent=deque(progress.recent, maxlen=_RECENT_STEPS))
