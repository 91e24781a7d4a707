"""Predict the class of the image and its pixels, L_gen + L_clf: how the paper fine-tunes.

Axis letters: B images, T positions, V colours, K classes.
"""

from typing import ClassVar

from jaxtyping import Float, Int
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from imagegpt.config import ImageGPTConfig
from imagegpt.data.batch import Batch
from imagegpt.model.losses import cross_entropy, masked_cross_entropy, masked_embeddings, with_start_token
from imagegpt.model.modeling import ImageGPTForCausalImageModeling, ImageGPTForImageClassification
from imagegpt.training.objectives.base import Losses, register_objective
from imagegpt.training.objectives.classification import Classification, classification_loss
from imagegpt.training.recipe_fields import STRICT, LossWeight, Probability


class ImageGPTWithBothHeads(nn.Module):
    """The body of a model, its head for pixels, and a head for classes.

    Args:
        generator: a model; its weights are used, not copied.
        classifier: of the same configuration; its head is used, not copied.
    """

    saved_class: ClassVar[type] = ImageGPTForImageClassification  # checkpoints leave out the pixel head

    def __init__(self, generator: ImageGPTForCausalImageModeling, classifier: ImageGPTForImageClassification) -> None:
        super().__init__()
        self.config = classifier.config
        self.transformer = generator.transformer
        self.lm_head = generator.lm_head
        self.score = classifier.score

    def forward(
        self, tokens: Int[Tensor, "b t"] | None = None, *, inputs_embeds: Float[Tensor, "b t c"] | None = None
    ) -> tuple[Float[Tensor, "b t v"], Float[Tensor, "b k"]]:
        """Return the logits of the pixels and of the classes.

        Args:
            tokens: for a causal model, the start token and all pixels but the last, or all pixels.
            inputs_embeds: for a bidirectional model, embeddings of all pixels, zero where masked.
        """
        features = self.transformer(tokens, inputs_embeds=inputs_embeds, use_cache=False).last_hidden_state
        return self.lm_head(features), self.score(features.mean(dim=1))


@register_objective
@dataclass(frozen=True, kw_only=True, config=STRICT)
class Joint(Classification):
    """Predict the class of the image and each of its pixels from those before it.

    With `config.shift_inputs` the start token comes first, as in the paper; without, the inputs are the pixels.

    Args:
        generative_weight: of the pixels' loss; 1 in the paper, 0 trains the classifier alone.
    """

    name = "joint"
    bidirectional_name = "joint-bert"

    generative_weight: LossWeight = 1.0

    def build_model(self, model: ImageGPTForCausalImageModeling, config: ImageGPTConfig) -> nn.Module:
        """A model with a head for pixels and one for classes."""
        return ImageGPTWithBothHeads(model, ImageGPTForImageClassification(config))

    def loss(self, model: ImageGPTWithBothHeads, batch: Batch) -> Losses:
        """Both losses from one pass over the blocks, on the classifier's inputs."""
        assert batch.labels is not None, "the data loader has labels for this objective"
        ids, shifted = batch.ids, model.config.shift_inputs
        pixel_logits, class_logits = model(with_start_token(ids, model.config.sos_token_id) if shifted else ids)
        if not shifted:  # nothing predicts the first pixel, and the last input predicts nothing
            pixel_logits, ids = pixel_logits[:, :-1], ids[:, 1:]
        return self._combine(cross_entropy(pixel_logits.flatten(0, 1), ids.flatten()), class_logits, batch.labels)

    def _combine(self, pixel_loss: Tensor, class_logits: Tensor, labels: Tensor) -> Losses:
        class_loss, accuracy = classification_loss(class_logits, labels)
        return {
            "loss": self.generative_weight * pixel_loss + class_loss,
            "pixel_loss": pixel_loss.detach(),
            "class_loss": class_loss.detach(),
            "accuracy": accuracy,
        }


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
