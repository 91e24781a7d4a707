"""ImageGPT ("Generative Pretraining from Pixels"): sample, complete, score and classify images, pixel by pixel.

The names below are the public API. They are imported when first used, so that `import imagegpt` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagegpt.checkpoints.registry import register
    from imagegpt.config import ImageGPTConfig
    from imagegpt.images.palette import ColorPalette
    from imagegpt.images.processor import ImageGPTFeatureExtractor, ImageGPTImageProcessor
    from imagegpt.model.modeling import (
        ImageGPTForCausalImageModeling,
        ImageGPTForImageClassification,
        ImageGPTModel,
        ImageGPTPreTrainedModel,
    )
    from imagegpt.pipeline.pipeline import ImageGPTPipeline

__version__ = "0.1.0"

__all__ = [
    "ColorPalette",
    "ImageGPTConfig",
    "ImageGPTFeatureExtractor",
    "ImageGPTForCausalImageModeling",
    "ImageGPTForImageClassification",
    "ImageGPTImageProcessor",
    "ImageGPTModel",
    "ImageGPTPipeline",
    "ImageGPTPreTrainedModel",
    "register",
]

_HOMES = {
    "ColorPalette": "imagegpt.images.palette",
    "ImageGPTConfig": "imagegpt.config",
    "ImageGPTFeatureExtractor": "imagegpt.images.processor",
    "ImageGPTForCausalImageModeling": "imagegpt.model.modeling",
    "ImageGPTForImageClassification": "imagegpt.model.modeling",
    "ImageGPTImageProcessor": "imagegpt.images.processor",
    "ImageGPTModel": "imagegpt.model.modeling",
    "ImageGPTPipeline": "imagegpt.pipeline.pipeline",
    "ImageGPTPreTrainedModel": "imagegpt.model.modeling",
    "register": "imagegpt.checkpoints.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'imagegpt' has no attribute {name!r}: it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
