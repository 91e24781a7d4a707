"""ImageGPT ("Generative Pretraining from Pixels"): sample, complete, score and classify images, pixel by pixel.

The names below are the public API. They are imported when first used, so that `import imagegpt` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagegpt.checkpoints.registry import register
    from imagegpt.config import ImageGPTConfig
    from imagegpt.model.modeling import (
        ImageGPTForCausalImageModeling,
        ImageGPTForImageClassification,
        ImageGPTModel,
        ImageGPTPreTrainedModel,
    )
    from imagegpt.palette import ColorPalette
    from imagegpt.pipeline import ImageGPTPipeline
    from imagegpt.processing import ImageGPTFeatureExtractor, ImageGPTImageProcessor

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
    "ColorPalette": "imagegpt.palette",
    "ImageGPTConfig": "imagegpt.config",
    "ImageGPTFeatureExtractor": "imagegpt.processing",
    "ImageGPTForCausalImageModeling": "imagegpt.model.modeling",
    "ImageGPTForImageClassification": "imagegpt.model.modeling",
    "ImageGPTImageProcessor": "imagegpt.processing",
    "ImageGPTModel": "imagegpt.model.modeling",
    "ImageGPTPipeline": "imagegpt.pipeline",
    "ImageGPTPreTrainedModel": "imagegpt.model.modeling",
    "register": "imagegpt.checkpoints.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'imagegpt' has no attribute {name!r}: it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
