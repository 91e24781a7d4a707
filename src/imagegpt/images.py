"""Reading images of every kind: files, Pillow images of any mode, arrays and tensors become 8-bit RGB.

Axis letters: H height, W width, C channels.
"""

import os
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

_ORIENTATION = 0x0112  # the EXIF tag


def read_image(image: Any, background: tuple[int, int, int]) -> Image.Image | UInt8[np.ndarray, "h w 3"]:
    """One image of any kind as an RGB Pillow image or a uint8 array (H, W, 3), neither of them empty."""
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
    if isinstance(image, np.ndarray):
        return _array_to_rgb(image, background)
    if isinstance(image, str | os.PathLike):
        return _file_to_rgb(Path(image), background)
    if isinstance(image, Image.Image):
        return _picture_to_rgb(_loaded(image, "the image"), background)
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


def _file_to_rgb(path: Path, background: tuple[int, int, int]) -> Image.Image:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: check the path, and download images from the web first")
    with open_picture(path, str(path)) as picture:
        return _picture_to_rgb(_loaded(picture, str(path)), background)


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


def _picture_to_rgb(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Any Pillow mode as RGB, on the background."""
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


def _array_to_rgb(array: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """An array of one image as uint8 (H, W, 3). Three axes: channels last if the last has 1, 3 or 4, else first."""
    shape = array.shape
    if array.ndim == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ValueError(
            f"an array of shape {shape} is no image: give (height, width), or 1, 3 or 4 channels last or first"
        )
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
