"""Predict the class of the image and its masked pixels from the visible ones: how the paper fine-tunes BERT."""

from pydantic.dataclasses import dataclass

from imagegpt.data.batch import Batch
from imagegpt.model.losses import masked_cross_entropy, masked_embeddings
from imagegpt.training.joint_model import ImageGPTWithBothHeads
from imagegpt.training.objectives.base import Losses, register_objective
from imagegpt.training.objectives.joint import Joint
from imagegpt.training.recipe_fields import STRICT, Probability


@register_objective
@dataclass(frozen=True, kw_only=True, config=STRICT)
class JointBert(Joint):
    """Predict the class of the image and its masked pixels, both from the visible ones.

    Args:
        generative_weight: see `Joint`.
        mask_probability: of each pixel being masked.
    """

    name = "joint-bert"
    is_causal = False
    bidirectional_name = None

    mask_probability: Probability = 0.15

    @property
    def masking(self) -> tuple[float, float | None]:
        """See `Objective`."""
        return self.mask_probability, None

    def loss(self, model: ImageGPTWithBothHeads, batch: Batch) -> Losses:
        """Both losses from one pass over the blocks."""
        assert batch.labels is not None, "the data loader has labels for this objective"
        assert batch.masked is not None, "the data loader masks pixels for this objective"
        pixel_logits, class_logits = model(inputs_embeds=masked_embeddings(model, batch.ids, batch.masked))
        return self._combine(masked_cross_entropy(pixel_logits, batch.ids, batch.masked), class_logits, batch.labels)
