"""Predict the class of the image and each of its pixels, L_gen + L_clf: how the paper fine-tunes."""

from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from imagegpt.config import ImageGPTConfig
from imagegpt.data.batch import Batch
from imagegpt.model.losses import cross_entropy, with_start_token
from imagegpt.model.modeling import ImageGPTForCausalImageModeling, ImageGPTForImageClassification
from imagegpt.training.joint_model import ImageGPTWithBothHeads
from imagegpt.training.objectives.base import Losses, register_objective
from imagegpt.training.objectives.classification import Classification, classification_loss
from imagegpt.training.recipe_fields import STRICT, LossWeight


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
