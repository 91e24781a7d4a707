"""Saving of a model and its processor to a folder, in transformers' format."""

import os

from safetensors import SafetensorError
from transformers import PreTrainedModel

from imagegpt.images.processor import ImageGPTImageProcessor


def save_folder(model: PreTrainedModel, processor: ImageGPTImageProcessor, folder: str | os.PathLike[str]) -> None:
    """Save both to a folder, which is created if needed.

    Raises: OSError if they cannot be written; files already written stay.
    """
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:  # for example a full disk, for which safetensors raises no OSError
        raise OSError(f"the model cannot be written ({error}): free some space, or choose another path") from error
    processor.save_pretrained(os.fspath(folder))
