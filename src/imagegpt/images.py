"""Reading images of every kind: files, Pillow images of any mode, arrays and tensors become 8-bit RGB.

Axis letters: H height, W width, C channels.
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor

_ORIENTATION = 0x0112  # the EXIF tag
_NUM_CHANNELS = (1, 3, 4)


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
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
    if isinstance(image, np.ndarray):
        return _array_to_rgb(image, background, input_data_format, convert)
    if isinstance(image, str | os.PathLike):
        return _file_to_rgb(Path(image), background, convert)
    if isinstance(image, Image.Image):
        return _picture_to_rgb(_loaded(image, "the image"), background, convert)
    raise ValueError(f"a {type(image).__name__} is no image: give a path, a Pillow image, an array or a tensor")


def open_picture(file: Path | BinaryIO, name: str) -> Image.Image:
    """Open an image file; its pixels are decoded later.

    Args:
        file: a path, or an open file.
        name: of it, for the errors.
    Raises: ValueError, with the name in it, if Pillow cannot read it or it has more pixels than Pillow allows.
    """
    try:
        # Pillow's limit against decompression bombs is a mere warning up to twice its value.
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(file)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{name} has more pixels than Pillow's limit of {Image.MAX_IMAGE_PIXELS:,}: shrink the image first"
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not an image that Pillow can read: convert it, for example to PNG") from error
    except Exception as error:  # Pillow's parsers raise whatever they stumble over
        if isinstance(error, OSError) and error.strerror:  # the system's errors carry one, Pillow's do not
            raise ValueError(f"{name} cannot be opened ({error.strerror}): check the file") from error
        raise _undecodable(name, error) from error


def _file_to_rgb(path: Path, background: tuple[int, int, int], convert: bool) -> Image.Image:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: check the path, and download images from the web first")
    with open_picture(path, str(path)) as picture:
        return _picture_to_rgb(_loaded(picture, str(path)), background, convert)


def _undecodable(name: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()).rstrip(".")
    return ValueError(f"{name} cannot be decoded, it may be truncated ({reason}): check the file")


def _loaded(picture: Image.Image, name: str) -> Image.Image:
    """Decode the pixels, which Pillow puts off, and turn them upright."""
    if not (picture.width and picture.height):
        raise ValueError(f"{name} is {picture.width}x{picture.height} pixels: it must have at least one")
    try:
        picture.load()
        if picture.getexif().get(_ORIENTATION, 1) == 1:  # nearly always; the copy below costs time
            return picture
        return ImageOps.exif_transpose(picture)
    except Exception as error:  # Pillow's decoders raise whatever their parsing stumbles over
        raise _undecodable(name, error) from error


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
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    return np.asarray(picture.resize(scaled, resample).crop((left, top, left + width, top + height)))


def _not_rgb(what: str) -> ValueError:
    return ValueError(f"{what} and do_convert_rgb is False: give RGB images, or set do_convert_rgb to True")


def _picture_to_rgb(picture: Image.Image, background: tuple[int, int, int], convert: bool = True) -> Image.Image:
    """Any Pillow mode as RGB, on the background."""
    if not convert and (picture.mode != "RGB" or picture.has_transparency_data):
        raise _not_rgb(f"the image has mode {picture.mode!r}{' and transparency' * (picture.mode == 'RGB')}")
    if picture.mode.startswith("I;16"):
        return Image.fromarray(_from_16_bits(np.asarray(picture))).convert("RGB")
    if picture.mode == "I":
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65_535:
            raise ValueError(
                f"the image of mode I holds {values.min()} to {values.max()}: its values must lie in 0 to 65535"
            )
        return Image.fromarray(_from_16_bits(values)).convert("RGB")
    if picture.mode == "F":
        return Image.fromarray(_bytes_of(np.asarray(picture))).convert("RGB")
    if picture.mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.applyTransform(picture, ImageCms.buildTransform(lab, rgb, "LAB", "RGB"))
        assert converted is not None  # it is None only for conversions in place
        return converted
    if picture.mode == "La":  # premultiplied grey, which Pillow converts to LA only
        picture = picture.convert("LA")
    if picture.has_transparency_data or picture.mode in ("LA", "PA", "RGBa"):
        opaque = Image.new("RGBA", picture.size, (*background, 255))
        return Image.alpha_composite(opaque, picture.convert("RGBA")).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


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
        raise _not_rgb(f"an array of shape {shape} has {array.shape[2]} channels")
    if not array.size:
        raise ValueError(f"an array of shape {shape} has no pixels: the image must have at least one")
    array = _bytes_of(array)
    if array.shape[2] == 4:
        return np.asarray(_picture_to_rgb(Image.fromarray(np.ascontiguousarray(array)), background))
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _bytes_of(values: np.ndarray) -> np.ndarray:
    """Array values as uint8: bool, uint8, uint16 over its full range, or floats in [0, 1], rounded to the nearest."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype == np.uint16:
        return _from_16_bits(values)
    if values.dtype.kind != "f":
        raise ValueError(f"the image's values are {values.dtype}: give uint8, bool, uint16 or floats in [0, 1]")
    low, high = values.min(), values.max()
    if np.isnan(low) or np.isnan(high):
        raise ValueError("the image holds NaN: floats must lie in 0 to 1")
    if low < 0 or high > 1:
        raise ValueError(f"the image's floats run from {low:.6g} to {high:.6g}: they must lie in 0 to 1, or be uint8")
    return np.rint(values.astype(np.float64) * 255).astype(np.uint8)


def _from_16_bits(values: np.ndarray) -> np.ndarray:
    return ((values.astype(np.uint32) * 255 + 32_767) // 65_535).astype(np.uint8)
