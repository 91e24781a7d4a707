"""Predict masked pixels from the visible ones."""

from pathlib import Path

from pydantic.dataclasses import dataclass

from imagegpt.checkpoints.loading import load_config
from imagegpt.data.batch import Batch
from imagegpt.data.data_splits import DataSplits
from imagegpt.evaluation.likelihood import Progress
from imagegpt.evaluation.scoring import Score, baselines, masked_nats, read_all_ids
from imagegpt.model.cost import num_parameters
from imagegpt.model.losses import bert_loss
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.training.objectives.base import FinalScores, Losses, Objective, register_objective
from imagegpt.training.recipe_fields import STRICT, Probability


@register_objective
@dataclass(frozen=True, kw_only=True, config=STRICT)
class Bert(Objective):
    """Predict masked pixels from the visible ones; see `bert_loss`.

    Args:
        mask_probability: of each pixel being masked; 0.15 in the paper. Validation masks with this probability.
        max_mask_probability: draw the probability of each training image uniformly between `mask_probability` and this,
            for a model that is to fill large holes; None masks all images alike.
    """

    name = "bert"
    is_causal = False

    mask_probability: Probability = 0.15
    max_mask_probability: Probability | None = None

    def __post_init__(self) -> None:
        if self.max_mask_probability is not None and self.max_mask_probability <= self.mask_probability:
            raise ValueError(
                f"objective.max_mask_probability is {self.max_mask_probability} and objective.mask_probability "
                f"{self.mask_probability}: the first must be larger, or left out"
            )

    @property
    def masking(self) -> tuple[float, float | None]:
        """See `Objective`."""
        return self.mask_probability, self.max_mask_probability

    def loss(self, model: ImageGPTForCausalImageModeling, batch: Batch) -> Losses:
        """Nats per masked pixel."""
        assert batch.masked is not None, "the data loader masks pixels for this objective"
        return {"loss": bert_loss(model, batch.ids, batch.masked)}

    def evaluate(self, folder: Path, data: DataSplits, split: str, *, device: str, progress: Progress) -> FinalScores:
        """Nats per masked pixel of the held-out images, beside the baselines for all pixels."""
        images, probability = data.splits[split], self.mask_probability
        nats = masked_nats(folder, images, probability=probability, device=device, progress=progress)
        note = f"{num_parameters(load_config(folder)):,} parameters, {probability:.0%} of the pixels hidden"
        scores = [Score(name="this model", nats=nats, note=note), *baselines(data, split, read_all_ids(images))]
        return FinalScores(scores=sorted(scores, key=lambda one: one.nats))
