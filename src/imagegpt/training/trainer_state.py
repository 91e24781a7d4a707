"""The state of a run besides its tensors, as checkpoints store it in JSON."""

import math
from collections import deque
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from imagegpt.files.schemas import validate

_RECENT_STEPS = 100  # a spike is measured against their mean loss

Metrics = dict[str, float]  # "loss", and what the objective adds


@dataclass
class TrainerState:
    """The state of a run besides its tensors.

    Attributes:
        step: completed steps.
        best_step: the step whose validation loss was the lowest.
        best: the metrics of that validation; "loss" is infinite before the first.
        last: the metrics of the last validation.
        validations_since_best: for early stopping.
        skipped_batches: how many batches were skipped because of spikes.
        rollbacks: number of rollbacks after spikes.
        recent_losses: of the last steps.
        trained_s: seconds of training, over all restarts.
    """

    step: int = 0
    best_step: int = 0
    best: Metrics = field(default_factory=lambda: {"loss": math.inf})
    last: Metrics = field(default_factory=dict)
    validations_since_best: int = 0
    skipped_batches: int = 0
    rollbacks: int = 0
    recent_losses: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT_STEPS))
    trained_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "recent_losses": list(self.recent_losses)}

    @classmethod
    def from_json(cls, content: dict[str, Any], what: str = "the trainer state") -> "TrainerState":
        """Read the state from the JSON of a checkpoint.

        Args:
            content: as `to_json` returned it.
            what: where it comes from, for error messages.
        Raises: ValueError, which names the field, if a field is missing or invalid.
        """
        if missing := sorted({one.name for one in fields(cls)} - content.keys()):
            raise ValueError(f"{what} has no {missing[0]}: start over with --force")
        try:
            state = validate(content, cls, what)
        except ValueError as error:
            raise ValueError(f"{error}; start over with --force") from error
        return replace(state, recent_losses=deque(state.recent_losses, maxlen=_RECENT_STEPS))
