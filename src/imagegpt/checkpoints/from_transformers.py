"""Conversion of transformers' ImageGPT models and processors to our classes, sharing the weights in memory."""

import torch
from torch import nn

from imagegpt.config import ImageGPTConfig
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.model.modeling import ImageGPTForCausalImageModeling

_TRANSFORMERS_MODULE = "transformers.models.imagegpt."


def convert_model(model: nn.Module) -> ImageGPTForCausalImageModeling:
    """Convert a generative model to our class; return one of ours unchanged.

    Args:
        model: an `ImageGPTForCausalImageModeling` of either library. One of transformers is not modified, and shares
            its weights with the result.
    Raises: ValueError for any other model, such as a classifier.
    """
    if isinstance(model, ImageGPTForCausalImageModeling):
        return model
    if not _is_transformers_class(model, "ImageGPTForCausalImageModeling"):
        raise ValueError(
            f"the model is a {_qualified_name(model)}: give an ImageGPTForCausalImageModeling of imagegpt or "
            "transformers"
        )
    config = ImageGPTConfig.from_dict(model.config.to_dict())  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    with torch.device("meta"):
        converted = ImageGPTForCausalImageModeling(config)
    converted.load_state_dict(model.state_dict(), strict=True, assign=True)
    return converted.train(model.training)


def convert_processor(processor: object) -> ImageGPTImageProcessor:
    """Convert a processor to our class; one of transformers becomes one with `resize_mode="squash"`.

    Raises: ValueError for any other object.
    """
    if isinstance(processor, ImageGPTImageProcessor):
        return processor
    if not any(
        _is_transformers_class(processor, f"ImageGPTImageProcessor{backend}") for backend in ("", "Pil", "Fast")
    ):
        raise ValueError(
            f"the processor is a {_qualified_name(processor)}: give an ImageGPTImageProcessor of imagegpt or "
            "transformers"
        )
    return ImageGPTImageProcessor.from_dict(processor.to_dict())  # pyright: ignore[reportAttributeAccessIssue]


def _is_transformers_class(value: object, name: str) -> bool:
    return any(cls.__module__.startswith(_TRANSFORMERS_MODULE) and cls.__name__ == name for cls in type(value).__mro__)


def _qualified_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
