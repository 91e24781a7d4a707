"""A model with both heads, for fine-tuning: the paper trains on pixels and classes together.

Axis letters: B images, T positions, V colours, K classes.
"""

from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from imagegpt.model.modeling import ImageGPTForCausalImageModeling, ImageGPTForImageClassification


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
