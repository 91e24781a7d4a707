"""Models and processors of transformers' own classes, made ours: the same weights in memory, the same settings."""

import torch
from torch import nn

from imagegpt.config import ImageGPTConfig
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.model.modeling import ImageGPTForCausalImageModeling

_THEIR_HOME = "transformers.models.imagegpt."


def our_model(model: nn.Module) -> ImageGPTForCausalImageModeling:
    """A generative model, ours or transformers', as one of ours.

    Args:
        model: of either library's `ImageGPTForCausalImageModeling`; theirs is left as it is, and shares its weights
            with what is returned.
    Raises: ValueError if it is anything else, such as a classifier.
    """
    if isinstance(model, ImageGPTForCausalImageModeling):
        return model
    if not _is_theirs(model, "ImageGPTForCausalImageModeling"):
        raise ValueError(
            f"the model is of the class {_full_name(model)}: give an ImageGPTForCausalImageModeling, of imagegpt or of "
            "transformers"
        )
    config = ImageGPTConfig.from_dict(model.config.to_dict())  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    with torch.device("meta"):
        ours = ImageGPTForCausalImageModeling(config)
    ours.load_state_dict(model.state_dict(), strict=True, assign=True)
    return ours.train(model.training)


def our_processor(processor: object) -> ImageGPTImageProcessor:
    """A processor, ours or transformers', as one of ours; theirs squash images, and so does what becomes of them.

    Raises: ValueError if it is anything else.
    """
    if isinstance(processor, ImageGPTImageProcessor):
        return processor
    if not any(_is_theirs(processor, f"ImageGPTImageProcessor{backend}") for backend in ("", "Pil", "Fast")):
        raise ValueError(
            f"the processor is of the class {_full_name(processor)}: give an ImageGPTImageProcessor, of imagegpt or of "
            "transformers"
        )
    return ImageGPTImageProcessor.from_dict(processor.to_dict())  # pyright: ignore[reportAttributeAccessIssue]


def _is_theirs(value: object, name: str) -> bool:
    return any(kind.__module__.startswith(_THEIR_HOME) and kind.__name__ == name for kind in type(value).__mro__)


def _full_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
