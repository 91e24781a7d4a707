"""Model names and their folders, and registration of our classes with transformers' `Auto...` classes.

A name is resolved in this order: a model bundled with the package, a folder, a name on the hub ("owner/model").
Anything else is an error that lists the known names. This module imports torch and transformers lazily, so that listing
models is fast.
"""

import difflib
import importlib.resources
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagegpt.files.paths import expand_home

CONFIG_FILE = "config.json"
MODEL_CARD = "README.md"

# OpenAI's weights as converted and published for transformers; 512 colours, 32 x 32 pixels.
HUB_MODELS = {
    "openai/imagegpt-small": "iGPT-S, 24 layers, ImageNet at 32 x 32, 512 colours",
    "openai/imagegpt-medium": "iGPT-M, 36 layers, ImageNet at 32 x 32, 512 colours",
    "openai/imagegpt-large": "iGPT-L, 48 layers, ImageNet at 32 x 32, 512 colours",
}

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class BundledModel:
    """A model that ships inside the package.

    Attributes:
        description: one line, the first sentence of its model card.
    """

    name: str
    description: str
    folder: Path


def bundled_models() -> list[BundledModel]:
    """Return the models that ship inside the package, sorted by name."""
    root = Path(str(importlib.resources.files("imagegpt"))) / "pretrained"
    folders = sorted(path.parent for path in root.glob(f"*/{CONFIG_FILE}"))
    return [BundledModel(name=path.name, description=_description(path), folder=path) for path in folders]


def find_local_folder(name: str | os.PathLike[str]) -> Path | None:
    """Return the folder of a model's files; None for a model on the hub, whose files may have to be downloaded.

    Args:
        name: of a bundled model, of a folder, or on the hub ("owner/model"), tried in this order; for a folder with the
            name of a bundled model give "./name".
    Raises: ValueError, with the known names, if there is no such model; FileNotFoundError for a path (absolute, or
        starting with a dot or ~) that is not a folder.
    """
    given = os.fspath(name)
    bundled = {model.name: model.folder for model in bundled_models()}
    if given in bundled:
        return bundled[given]
    folder = Path(expand_home(given))
    if given and folder.is_dir():
        return folder
    if folder.is_file():
        raise ValueError(f"{given} is a file: give the folder that contains {CONFIG_FILE} and the weights")
    if folder.is_absolute() or given.startswith(("./", "../")) or not isinstance(name, str):
        raise FileNotFoundError(
            f"there is no folder {given}: check the path, or give a model's name ({_known(bundled)})"
        )
    if _HUB_NAME.fullmatch(given) and ".." not in given:
        return None
    close = difflib.get_close_matches(given.lower(), [*bundled, *HUB_MODELS], n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(
        f"there is no model {given!r}: {hint}known are {_known(bundled)}, any folder with a model, and any owner/model "
        "on the hub"
    )


def register() -> None:
    """Register our classes with transformers' `Auto...` classes, replacing its ImageGPT, for the whole process.

    They are AutoConfig, AutoModel, AutoModelForImageClassification, AutoImageProcessor, AutoFeatureExtractor and the
    mapping of generative image models; `transformers.pipeline("image-classification", model=...)` builds on these.
    Calling it again changes nothing.
    """
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForImageClassification

    # From its own module: without torchvision, transformers 5.17 does not export AutoImageProcessor.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_IMAGE_MODELING_MAPPING

    from imagegpt.config import EXTENDED_MODEL_TYPE, ImageGPTConfig, ImageGPTExtendedConfig
    from imagegpt.images.processor import ImageGPTFeatureExtractor, ImageGPTImageProcessor, ImageGPTImageProcessorPil
    from imagegpt.model.modeling import ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel

    AutoConfig.register(ImageGPTConfig.model_type, ImageGPTConfig, exist_ok=True)
    AutoConfig.register(EXTENDED_MODEL_TYPE, ImageGPTExtendedConfig, exist_ok=True)
    AutoModel.register(ImageGPTConfig, ImageGPTModel, exist_ok=True)
    AutoModelForImageClassification.register(ImageGPTConfig, ImageGPTForImageClassification, exist_ok=True)
    # There is no Auto class for this mapping, but tools use it to find the generative model of a configuration.
    mapping: Any = MODEL_FOR_CAUSAL_IMAGE_MODELING_MAPPING
    mapping.register(ImageGPTConfig, ImageGPTForCausalImageModeling, exist_ok=True)
    # One processor serves both of transformers' backends: it uses Pillow and needs no torchvision. The third entry is
    # for folders with the name of transformers' Pillow class, and for transformers 5.17, which looks it up by name.
    processors = {
        "pil": ImageGPTImageProcessor,
        "torchvision": ImageGPTImageProcessor,
        "by_name": ImageGPTImageProcessorPil,
    }
    AutoImageProcessor.register(ImageGPTConfig, image_processor_classes=processors, exist_ok=True)
    AutoFeatureExtractor.register(ImageGPTConfig, ImageGPTFeatureExtractor, exist_ok=True)


def _known(bundled: dict[str, Path]) -> str:
    return ", ".join([*bundled, *HUB_MODELS])


def _description(folder: Path) -> str:
    """Return the first sentence of the model card's text."""
    card = folder / MODEL_CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)  # the card's metadata
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in paragraph.splitlines() if not line.startswith(("#", "|", "!", "<", "`"))]
        if line := " ".join(lines).strip():
            return re.split(r"(?<=[.!?])\s", line)[0].rstrip(".")
    return "no model card"
