"""Reading images of every kind: files, Pillow images of any mode, arrays and tensors become 8-bit RGB.

Axis letters: H height, W width, C channels.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from imagegpt.images.color_conversion import bytes_of, not_rgb, picture_to_rgb
from imagegpt.images.decoding import decoded, open_picture, out_of_memory

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor

_NUM_CHANNELS = (1, 3, 4)
_MOST_SCALED_PIXELS = 1 << 22  # of a whole picture, of which most may be cut away


def single_images(images: ImageLike | Sequence[Any], input_data_format: str | None = None) -> list[Any]:
    """Every image of what was given: one, a batch array, or a list of any of these, nested or not.

    An array of 4 axes is a batch. One of 3 axes is a batch of grey images (B, H, W) if `input_data_format` says "none",
    or if it says nothing and no reading as one image is possible: neither the last nor the first axis is 1, 3 or 4.
    (With 2 in the last place it is left as it is, and refused by `read_image`: grey with transparency has that shape.)
    """
    if isinstance(images, list | tuple):
        return [image for part in images for image in single_images(part, input_data_format)]
    if isinstance(images, np.ndarray | torch.Tensor) and _is_batch(tuple(images.shape), input_data_format):
        return list(images)
    return [images]


def _is_batch(shape: tuple[int, ...], input_data_format: str | None) -> bool:
    if len(shape) != 3:
        return len(shape) == 4
    if input_data_format is not None:
        return input_data_format == "none"
    return shape[2] not in (*_NUM_CHANNELS, 2) and shape[0] not in _NUM_CHANNELS


def read_image(
    image: Any, background: tuple[int, int, int], *, input_data_format: str | None = None, convert: bool = True
) -> Image.Image | UInt8[np.ndarray, "h w 3"]:
    """One image of any kind as an RGB Pillow image or a uint8 array (H, W, 3), neither of them empty.

    Args:
        image: a path, a Pillow image, or an array or tensor of 2 or 3 axes.
        background: laid behind transparent pixels, (red, green, blue), 0 to 255.
        input_data_format: where arrays of 3 axes have their channels, "channels_last", "channels_first" or "none"; None
            is last if the last axis is 1, 3 or 4, and else first.
        convert: False refuses what is not RGB already.
    Raises: FileNotFoundError for a missing file; ValueError for what cannot be read or understood.
    """
    try:
        return _to_rgb(image, background, input_data_format, convert)
    except MemoryError as error:
        raise out_of_memory(str(image) if isinstance(image, str | os.PathLike) else "the image") from error


def _to_rgb(
    image: Any, background: tuple[int, int, int], input_data_format: str | None, convert: bool
) -> Image.Image | np.ndarray:
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
    if isinstance(image, np.ndarray):
        return _array_to_rgb(image, background, input_data_format, convert)
    if isinstance(image, str | os.PathLike):
        with open_file(Path(image)) as picture:
            return picture_to_rgb(decoded(picture, str(image)), background, convert)
    if isinstance(image, Image.Image):
        return picture_to_rgb(decoded(image, "the image"), background, convert)
    raise ValueError(f"a {type(image).__name__} is no image: give a path, a Pillow image, an array or a tensor")


def open_file(path: Path) -> Image.Image:
    """Open an image file, see `open_picture`.

    Raises: FileNotFoundError if there is none; ValueError, with its path in it, if it cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: check the path, and download images from the web first")
    return open_picture(path, str(path))


def resize_image(
    image: Image.Image | UInt8[np.ndarray, "h w 3"], size: dict[str, int], mode: str, resample: int
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Bring an RGB image to a size in pixels, unless it has it already.

    Args:
        image: as `read_image` gives it.
        size: {"height": ..., "width": ...}.
        mode: "crop" scales until the image covers the size and cuts out the centre; "squash" ignores the aspect ratio.
        resample: a Pillow filter.
    """
    height, width = size["height"], size["width"]
    if (image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)) == (height, width):
        return np.asarray(image)
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    if mode == "squash":
        return np.asarray(picture.resize((width, height), resample))
    scale = max(height / picture.height, width / picture.width)
    scaled = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    corner = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    return np.asarray(scaled_crop(picture, scaled, corner, (width, height), resample))


def scaled_crop(
    picture: Image.Image, scaled: tuple[int, int], corner: tuple[int, int], size: tuple[int, int], resample: int
) -> Image.Image:
    """A part of a picture that is scaled first.

    A long and narrow picture may become many times larger in between: then only the part itself is computed, of which
    a few values differ by a level, since Pillow keeps the part's place as float32.

    Args:
        picture: RGB.
        scaled: width and height that the whole picture is brought to.
        corner: left and top of the part in it.
        size: width and height of the part.
        resample: a Pillow filter.
    """
    (left, top), (width, height) = corner, size
    if scaled[0] * scaled[1] <= _MOST_SCALED_PIXELS:
        return picture.resize(scaled, resample).crop((left, top, left + width, top + height))
    across, down = picture.width / scaled[0], picture.height / scaled[1]
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    return picture.resize(size, resample, box=(box[0], box[1], min(box[2], picture.width), min(box[3], picture.height)))


def _array_to_rgb(
    array: np.ndarray, background: tuple[int, int, int], input_data_format: str | None, convert: bool
) -> np.ndarray:
    """An array of one image as uint8 (H, W, 3)."""
    shape = array.shape
    if input_data_format == "none" and array.ndim != 2:
        raise ValueError(
            f"an array of shape {shape} has more axes than input_data_format 'none' allows: "
            "give (height, width), or (images, height, width)"
        )
    first = input_data_format == "channels_first"
    if input_data_format is None and array.ndim == 3:
        first = shape[2] not in _NUM_CHANNELS and shape[0] in _NUM_CHANNELS
    if array.ndim == 3 and first:
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in _NUM_CHANNELS:
        where = "last or first" if input_data_format is None else "first" if first else "last"
        raise ValueError(f"an array of shape {shape} is no image: give (height, width), or 1, 3 or 4 channels {where}")
    if not convert and array.shape[2] != 3:
        raise not_rgb(f"an array of shape {shape} has {array.shape[2]} channels")
    if not array.size:
        raise ValueError(f"an array of shape {shape} has no pixels: the image must have at least one")
    array = bytes_of(array)
    if array.shape[2] == 4:
        return np.asarray(picture_to_rgb(Image.fromarray(np.ascontiguousarray(array)), background))
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))
