"""The names a user may say for a model, the folders they stand for, and our classes behind transformers' `Auto...`.

A name is looked up in this order: a model bundled with the package, a folder, a name on the hub ("owner/model").
Nothing is guessed: what is none of these is an error that lists what is known. This file imports torch and
transformers only where they are needed, so that listing the models is quick.
"""

import difflib
import importlib.resources
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
        name: what to call it.
        description: one line, the first sentence of its model card.
        folder: where its files are.
    """

    name: str
    description: str
    folder: Path


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model is.

    Attributes:
        name: what the user said.
        kind: "bundled" or "folder", whose files are at hand, or "hub", whose files may have to be fetched.
        folder: of the files; None on the hub.
    """

    name: str
    kind: Literal["bundled", "folder", "hub"]
    folder: Path | None


def bundled_models() -> list[BundledModel]:
    """The models that ship inside the package, by name."""
    root = Path(str(importlib.resources.files("imagegpt"))) / "pretrained"
    folders = sorted(path.parent for path in root.glob(f"*/{CONFIG_FILE}"))
    return [BundledModel(name=path.name, description=_description(path), folder=path) for path in folders]


def resolve(name: str | os.PathLike[str]) -> ModelSource:
    """Find out what a name stands for.

    Args:
        name: of a bundled model, of a folder, or on the hub ("owner/model"), looked for in this order; a folder that is
            called like a bundled model is reached as "./name".
    Raises: ValueError if it is none of them, listing what is known; FileNotFoundError for a path (absolute, or starting
        with a dot or ~) that is no folder.
    """
    said = os.fspath(name)
    bundled = {model.name: model.folder for model in bundled_models()}
    if said in bundled:
        return ModelSource(name=said, kind="bundled", folder=bundled[said])
    folder = Path(expand_home(said))
    if said and folder.is_dir():
        return ModelSource(name=said, kind="folder", folder=folder)
    if folder.is_file():
        raise ValueError(f"{said} is a file: give the folder that holds {CONFIG_FILE} and the weights")
    if folder.is_absolute() or said.startswith(("./", "../")) or not isinstance(name, str):
        raise FileNotFoundError(
            f"there is no folder {said}: check the path, or give a model's name ({_known(bundled)})"
        )
    if _HUB_NAME.fullmatch(said) and ".." not in said:
        return ModelSource(name=said, kind="hub", folder=None)
    close = difflib.get_close_matches(said.lower(), [*bundled, *HUB_MODELS], n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(
        f"there is no model {said!r}: {hint}known are {_known(bundled)}, any folder that holds a model, and any "
        "owner/model on the hub"
    )


def register() -> None:
    """Put our classes behind transformers' `Auto...` classes, in place of its own ImageGPT, for the whole process.

    That is AutoConfig, AutoModel, AutoModelForImageClassification, AutoImageProcessor and AutoFeatureExtractor, and the
    mapping of generative image models; `transformers.pipeline("image-classification", model=...)` builds on these.
    Calling it again changes nothing.
    """
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForImageClassification

    # By its own module: transformers 5.17 offers no AutoImageProcessor at its top without torchvision.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_IMAGE_MODELING_MAPPING

    from imagegpt.config import EXTENDED_MODEL_TYPE, ImageGPTConfig, ImageGPTExtendedConfig
    from imagegpt.images.processor import ImageGPTFeatureExtractor, ImageGPTImageProcessor, ImageGPTImageProcessorPil
    from imagegpt.model.modeling import ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel

    AutoConfig.register(ImageGPTConfig.model_type, ImageGPTConfig, exist_ok=True)
    AutoConfig.register(EXTENDED_MODEL_TYPE, ImageGPTExtendedConfig, exist_ok=True)
    AutoModel.register(ImageGPTConfig, ImageGPTModel, exist_ok=True)
    AutoModelForImageClassification.register(ImageGPTConfig, ImageGPTForImageClassification, exist_ok=True)
    # No Auto class stands before this mapping; tools that look up what a configuration generates with read it.
    mapping: Any = MODEL_FOR_CAUSAL_IMAGE_MODELING_MAPPING
    mapping.register(ImageGPTConfig, ImageGPTForCausalImageModeling, exist_ok=True)
    # One processor serves both of transformers' backends: it works on Pillow images and needs no torchvision. The third
    # is for folders that name transformers' class for Pillow, and for transformers 5.17, which looks for that name.
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
    """The first sentence of the model card's text, or what there is to say without one."""
    card = folder / MODEL_CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)  # the card's metadata
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in paragraph.splitlines() if not line.startswith(("#", "|", "!", "<", "`"))]
        if line := " ".join(lines).strip():
            return re.split(r"(?<=[.!?])\s", line)[0].rstrip(".")
    return "no model card"
