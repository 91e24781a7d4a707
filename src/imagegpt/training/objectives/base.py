"""What every objective provides, and the registry of objectives."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64
from torch import Tensor, nn

from imagegpt.common.registry import Registry
from imagegpt.config import ImageGPTConfig
from imagegpt.data.batch import Batch
from imagegpt.data.data_splits import DataSplits
from imagegpt.evaluation.likelihood import Progress
from imagegpt.evaluation.scoring import Score
from imagegpt.model.modeling import ImageGPTForCausalImageModeling

Losses = dict[str, Tensor]  # scalars: "loss", which is minimised, and metrics to log


@dataclass(frozen=True, kw_only=True)
class FinalScores:
    """The results of the best model of a run on held-out images.

    Attributes:
        scores: in nats per pixel, best first, beside baselines; empty where the objective has none.
        accuracy: the fraction of images that a classifier assigns to their class.
        confusion: how many images of class i (row) were assigned to class j (column).
    """

    scores: Sequence[Score] = ()
    accuracy: float | None = None
    confusion: Int64[np.ndarray, "k k"] | None = None


class Objective(ABC):
    """What training minimises.

    A subclass is a frozen pydantic dataclass whose fields are its options in the recipe, beside `name`.

    Attributes:
        name: in recipes and logs.
        is_causal: whether each pixel may see only those before it; a model of the other kind is refused.
        needs_labels: whether every training image needs a class.
        can_sample: whether the trained model generates images, which a run then shows at each validation.
        unit: of the loss, for example "nats/pixel".
        bidirectional_name: the objective to fine-tune a bidirectional model with when this one was asked for.
    """

    name: ClassVar[str]
    is_causal: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    can_sample: ClassVar[bool] = False
    unit: ClassVar[str] = "nats/pixel"
    bidirectional_name: ClassVar[str | None] = None

    @property
    def masking(self) -> tuple[float, float | None] | None:
        """The probability that a pixel is masked, and its upper end if it varies by image; None for no masking."""
        return None

    def build_model(self, model: ImageGPTForCausalImageModeling, config: ImageGPTConfig) -> nn.Module:
        """Build the model to train from one with a pixel head.

        Args:
            model: freshly initialised or pretrained; use its weights without copying them.
            config: of the model, with the classes of the data if the objective needs labels.
        """
        return model

    @abstractmethod
    def loss(self, model: Any, batch: Batch) -> Losses:
        """Compute the loss and metrics of a batch.

        Args:
            model: as `build_model` returned it.
            batch: on the model's device; has labels and masks if the objective asks for them.
        Returns: "loss", which is minimised, and any metrics, each a scalar mean over the images of the batch.
        """

    def format_metrics(self, metrics: Mapping[str, float]) -> str:
        """Describe the metrics of a step in one line."""
        text = f"{metrics['loss']:.3f} {self.unit}"
        if self.unit == "nats/pixel":
            text += f" = {metrics['loss'] / math.log(2):.3f} bits/pixel"
        return text + (f", accuracy {metrics['accuracy']:.0%}" if "accuracy" in metrics else "")

    def evaluate(self, folder: Path, data: DataSplits, split: str, *, device: str, progress: Progress) -> FinalScores:
        """Score the best model of a run on held-out images.

        Args:
            folder: of the model.
            data: of the run.
            split: "test", or "validation" if there are no test images.
            device: to compute on.
            progress: called with images scored, and images in all.
        """
        return FinalScores()


OBJECTIVES = Registry[type[Objective]](kind="objective", group="imagegpt.objectives")
register_objective = OBJECTIVES.register_class


class ModelWithObjective(nn.Module):
    """A model together with its objective, so that wrappers (DDP, FSDP) see the whole of a training step.

    Args:
        model: as the objective's `build_model` returned it.
        objective: computes the loss.
    """

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Batch) -> Losses:
        """Return the loss and the metrics of a batch."""
        return self.objective.loss(self.model, batch)
