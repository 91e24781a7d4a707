"""Reading of images: files, Pillow images of any mode, arrays and tensors become 8-bit RGB of the requested size.

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

from imagegpt.images.color_conversion import convert_to_rgb, not_rgb_error, to_uint8
from imagegpt.images.decoding import decode_image, open_image, out_of_memory_error

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor

_NUM_CHANNELS = (1, 3, 4)
_MAX_RESIZED_PIXELS = 1 << 22  # above this, `resize_and_crop` does not resize the whole image


def flatten_images(images: ImageLike | Sequence[Any], input_data_format: str | None = None) -> list[Any]:
    """Return a flat list of images, given one image, a batch array, or lists of these, possibly nested.

    A 4-D array is a batch. A 3-D array is a batch of grey images (B, H, W) if `input_data_format` is "none", or if it
    is None and the array cannot be one image: neither the last nor the first axis is 1, 3 or 4. (If the last axis is 2,
    the shape of grey with alpha, the array is returned as is, and `read_image` refuses it.)
    """
    if isinstance(images, list | tuple):
        return [image for item in images for image in flatten_images(item, input_data_format)]
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
    """Read one image as an RGB Pillow image or a uint8 array (H, W, 3), not empty.

    Args:
        image: a path, a Pillow image, or a 2-D or 3-D array or tensor.
        background: behind transparent pixels, (red, green, blue), 0 to 255.
        input_data_format: channel axis of 3-D arrays, "channels_last", "channels_first" or "none"; None is last if the
            last axis is 1, 3 or 4, otherwise first.
        convert: False refuses images that are not RGB.
    Raises: FileNotFoundError for a missing file; ValueError for an image that cannot be read.
    """
    try:
        return _to_rgb(image, background, input_data_format, convert)
    except MemoryError as error:
        raise out_of_memory_error(str(image) if isinstance(image, str | os.PathLike) else "the image") from error


def _to_rgb(
    image: Any, background: tuple[int, int, int], input_data_format: str | None, convert: bool
) -> Image.Image | np.ndarray:
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
    if isinstance(image, np.ndarray):
        return _array_to_rgb(image, background, input_data_format, convert)
    if isinstance(image, str | os.PathLike):
        with open_file(Path(image)) as opened:
            return convert_to_rgb(decode_image(opened, str(image)), background, convert)
    if isinstance(image, Image.Image):
        return convert_to_rgb(decode_image(image, "the image"), background, convert)
    raise ValueError(f"a {type(image).__name__} is not an image: give a path, a Pillow image, an array or a tensor")


def open_file(path: Path) -> Image.Image:
    """Open an image file, see `open_image`.

    Raises: FileNotFoundError if it does not exist; ValueError, with its path in it, if it cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: check the path, and download images from the web first")
    return open_image(path, str(path))


def resize_image(
    image: Image.Image | UInt8[np.ndarray, "h w 3"], size: dict[str, int], mode: str, resample: int
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Resize an RGB image, unless it already has the requested size.

    Args:
        size: {"height": ..., "width": ...}.
        mode: "crop" scales the image to cover the size and crops the centre; "squash" ignores the aspect ratio.
    """
    height, width = size["height"], size["width"]
    if (image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)) == (height, width):
        return np.asarray(image)
    source = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    if mode == "squash":
        return np.asarray(source.resize((width, height), resample))
    scale = max(height / source.height, width / source.width)
    resized = max(width, round(source.width * scale)), max(height, round(source.height * scale))
    corner = (resized[0] - width) // 2, (resized[1] - height) // 2
    return np.asarray(resize_and_crop(source, resized, corner, (width, height), resample))


def resize_and_crop(
    image: Image.Image, resized: tuple[int, int], corner: tuple[int, int], size: tuple[int, int], resample: int
) -> Image.Image:
    """Resize an image, then crop it.

    A long and narrow image may become many times larger in between. Then only the crop itself is computed; a few of its
    values differ by one level, since Pillow stores the crop box as float32.

    Args:
        image: RGB.
        resized: width and height of the whole image after resizing.
        corner: left and top of the crop in it.
        size: width and height of the crop.
    """
    (left, top), (width, height) = corner, size
    if resized[0] * resized[1] <= _MAX_RESIZED_PIXELS:
        return image.resize(resized, resample).crop((left, top, left + width, top + height))
    scale_x, scale_y = image.width / resized[0], image.height / resized[1]
    box = (left * scale_x, top * scale_y, (left + width) * scale_x, (top + height) * scale_y)
    return image.resize(size, resample, box=(box[0], box[1], min(box[2], image.width), min(box[3], image.height)))


def _array_to_rgb(
    array: np.ndarray, background: tuple[int, int, int], input_data_format: str | None, convert: bool
) -> np.ndarray:
    """Convert an array of one image to uint8 (H, W, 3)."""
    shape = array.shape
    if input_data_format == "none" and array.ndim != 2:
        raise ValueError(
            f"an array of shape {shape} has more axes than input_data_format 'none' allows: "
            "give (height, width), or (images, height, width)"
        )
    channels_first = input_data_format == "channels_first"
    if input_data_format is None and array.ndim == 3:
        channels_first = shape[2] not in _NUM_CHANNELS and shape[0] in _NUM_CHANNELS
    if array.ndim == 3 and channels_first:
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in _NUM_CHANNELS:
        where = "last or first" if input_data_format is None else "first" if channels_first else "last"
        raise ValueError(
            f"an array of shape {shape} is not an image: give (height, width), or 1, 3 or 4 channels {where}"
        )
    if not convert and array.shape[2] != 3:
        raise not_rgb_error(f"an array of shape {shape} has {array.shape[2]} channels")
    if not array.size:
        raise ValueError(f"an array of shape {shape} has no pixels: the image must have at least one")
    array = to_uint8(array)
    if array.shape[2] == 4:
        return np.asarray(convert_to_rgb(Image.fromarray(np.ascontiguousarray(array)), background))
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))
