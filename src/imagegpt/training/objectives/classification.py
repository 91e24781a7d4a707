"""Predict the class of the whole image."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from imagegpt.config import ImageGPTConfig
from imagegpt.data.batch import Batch
from imagegpt.data.data_splits import DataSplits
from imagegpt.evaluation.classification import classify
from imagegpt.evaluation.likelihood import Progress
from imagegpt.model.losses import cross_entropy
from imagegpt.model.modeling import ImageGPTForCausalImageModeling, ImageGPTForImageClassification
from imagegpt.training.objectives.base import FinalScores, Losses, Objective, register_objective
from imagegpt.training.recipe_fields import STRICT


@register_objective
@dataclass(frozen=True, kw_only=True, config=STRICT)
class Classification(Objective):
    """Predict the class of the whole image."""

    name = "classification"
    needs_labels = True
    unit = "nats/image"

    def build_model(self, model: ImageGPTForCausalImageModeling, config: ImageGPTConfig) -> nn.Module:
        """A classifier on the body of the model."""
        classifier = ImageGPTForImageClassification(config)
        classifier.transformer = model.transformer
        return classifier

    def loss(self, model: Any, batch: Batch) -> Losses:
        """Cross-entropy of the classes, and the accuracy."""
        assert batch.labels is not None, "the data loader has labels for this objective"
        loss, accuracy = classification_loss(model(batch.ids, use_cache=False).logits, batch.labels)
        return {"loss": loss, "accuracy": accuracy}

    def evaluate(self, folder: Path, data: DataSplits, split: str, *, device: str, progress: Progress) -> FinalScores:
        """Accuracy on the held-out images, and which classes are confused."""
        options = {} if self.masking is None else {"mask_probability": self.masking[0]}
        predicted, true = classify(folder, data.splits[split], device=device, progress=progress, **options)
        assert data.classes is not None, "an objective that needs labels has classes"
        confusion = np.zeros((len(data.classes), len(data.classes)), np.int64)
        np.add.at(confusion, (true, predicted), 1)
        return FinalScores(accuracy=float((predicted == true).mean()), confusion=confusion)


def classification_loss(
    logits: Float[Tensor, "b k"], labels: Int[Tensor, " b"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the cross-entropy of class logits, and the accuracy of the likeliest class."""
    return cross_entropy(logits, labels), (logits.argmax(dim=1) == labels).float().mean()
