"""ImageGPT ("Generative Pretraining from Pixels"): train models of pixels; sample, complete and score images.

The names below are the public API. They are imported on first use, so that `import imagegpt` takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagegpt.checkpoints.registry import register
    from imagegpt.config import ImageGPTConfig
    from imagegpt.evaluation.evaluate import evaluate
    from imagegpt.images.palette import ColorPalette
    from imagegpt.images.processor import ImageGPTFeatureExtractor, ImageGPTImageProcessor
    from imagegpt.jobs.encode import encode
    from imagegpt.model.modeling import (
        ImageGPTForCausalImageModeling,
        ImageGPTForImageClassification,
        ImageGPTModel,
        ImageGPTPreTrainedModel,
    )
    from imagegpt.pipeline.pipeline import ImageGPTPipeline
    from imagegpt.training.api import finetune, train

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
    "encode",
    "evaluate",
    "finetune",
    "register",
    "train",
]

_MODULES = {
    "ColorPalette": "imagegpt.images.palette",
    "ImageGPTConfig": "imagegpt.config",
    "ImageGPTFeatureExtractor": "imagegpt.images.processor",
    "ImageGPTForCausalImageModeling": "imagegpt.model.modeling",
    "ImageGPTForImageClassification": "imagegpt.model.modeling",
    "ImageGPTImageProcessor": "imagegpt.images.processor",
    "ImageGPTModel": "imagegpt.model.modeling",
    "ImageGPTPipeline": "imagegpt.pipeline.pipeline",
    "ImageGPTPreTrainedModel": "imagegpt.model.modeling",
    "encode": "imagegpt.jobs.encode",
    "evaluate": "imagegpt.evaluation.evaluate",
    "finetune": "imagegpt.training.api",
    "register": "imagegpt.checkpoints.registry",
    "train": "imagegpt.training.api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'imagegpt' has no attribute {name!r}: it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
