"""Predict each pixel from those before it."""

from pathlib import Path

from pydantic.dataclasses import dataclass

from imagegpt.data.batch import Batch
from imagegpt.data.data_splits import DataSplits
from imagegpt.evaluation.likelihood import Progress
from imagegpt.evaluation.scoring import score_split
from imagegpt.model.losses import autoregressive_loss
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.training.objectives.base import FinalScores, Losses, Objective, register_objective
from imagegpt.training.recipe_fields import STRICT


@register_objective
@dataclass(frozen=True, kw_only=True, config=STRICT)
class Autoregressive(Objective):
    """Predict each pixel from those before it; see `autoregressive_loss`."""

    name = "autoregressive"
    can_sample = True

    def loss(self, model: ImageGPTForCausalImageModeling, batch: Batch) -> Losses:
        """Nats per pixel."""
        return {"loss": autoregressive_loss(model, batch.ids)}

    def evaluate(self, folder: Path, data: DataSplits, split: str, *, device: str, progress: Progress) -> FinalScores:
        """The exact likelihood of the held-out images, beside the baselines."""
        return FinalScores(scores=score_split(folder, data, split=split, device=device, progress=progress))
