"""Every model class in every relevant configuration, with inputs and a loss: parameters of this folder's tests."""

import pytest
import torch

from helpers import image_ids, tiny_model
from imagegpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel

CLASSES = [ImageGPTModel, ImageGPTForCausalImageModeling, ImageGPTForImageClassification]
SHORT_NAMES = {
    ImageGPTModel: "base",
    ImageGPTForCausalImageModeling: "generative",
    ImageGPTForImageClassification: "classifier",
}
KINDS = {
    "causal": {},
    "causal-no_biases": {"use_bias": False},
    "bidirectional": {"is_causal": False},
    "bidirectional-no_biases": {"is_causal": False, "use_bias": False},
}

EVERY_CLASS = pytest.mark.parametrize("model_class", CLASSES, ids=SHORT_NAMES.values())


def _every_model(slow=""):
    """All classes and kinds; kinds whose name ends in `slow` run in the slow tests only."""
    pairs = [(cls, kind) for cls in CLASSES for kind in KINDS]
    return pytest.mark.parametrize(
        ("model_class", "kind"),
        [
            pytest.param(
                cls, kind, id=f"{SHORT_NAMES[cls]}-{kind}",
                marks=[pytest.mark.slow] if slow and kind.endswith(slow) else [],
            )
            for cls, kind in pairs
        ],
    )  # fmt: skip


EVERY_MODEL = _every_model()
EVERY_MODEL_PARTLY_SLOW = _every_model(slow="no_biases")

# transformers 5.23 renamed methods of gradient checkpointing; 5.17, which we support too, has the old names only.
OLD_NAMES = "ignore:.(is_)?gradient_checkpointing(_enable|_disable)?. is deprecated:FutureWarning"


def model_of(model_class, kind="causal", **options):
    """A tiny model of the kind with random weights, in evaluation mode."""
    return tiny_model(model_class, num_labels=3, **KINDS[kind], **options)


def batch_for(model, batch=2, labels=True):
    """Token ids, and labels if the model has a head."""
    inputs = {"input_ids": image_ids(batch=batch)}
    if labels and isinstance(model, ImageGPTForCausalImageModeling):
        inputs["labels"] = image_ids(batch=batch, sos=False, seed=1)
    if labels and isinstance(model, ImageGPTForImageClassification):
        inputs["labels"] = torch.arange(batch) % 3
    return inputs


def main_output(model, inputs, **options):
    """The features or the logits."""
    outputs = model(**inputs, **options)
    return outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state


def loss_of(model, inputs):
    """The model's loss; a model without a head gets one that depends on all its features."""
    outputs = model(**inputs)
    return outputs.loss if "labels" in inputs else outputs.last_hidden_state.square().mean()


def gradients_of(model, inputs):
    """The loss, and the gradient of every parameter by name."""
    model.zero_grad()
    loss = loss_of(model, inputs)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def step_downhill(model, length=1e-3):
    """Take a small gradient step of fixed length."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.stack([gradient.double().norm() for gradient in gradients]).norm().item()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=length / norm)
