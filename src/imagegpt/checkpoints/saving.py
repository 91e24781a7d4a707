"""Writing a model and its processor into a folder, as transformers does."""

import os

from safetensors import SafetensorError
from transformers import PreTrainedModel

from imagegpt.images.processor import ImageGPTImageProcessor


def save_folder(model: PreTrainedModel, processor: ImageGPTImageProcessor, folder: str | os.PathLike[str]) -> None:
    """Write both into a folder, which is made if it is not there.

    Raises: OSError if they cannot be written; what is written by then stays.
    """
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:  # a full disk, for one, which is no OSError to safetensors
        raise OSError(f"the model cannot be written ({error}): make room there, or choose another place") from error
    processor.save_pretrained(os.fspath(folder))
