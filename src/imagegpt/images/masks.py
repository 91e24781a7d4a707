"""The visible pixels of an image to complete: a fraction of its pixels, its first rows, or a mask.

Axes: H rows, W columns.
"""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from imagegpt.common import ranges
from imagegpt.images.color_conversion import convert_to_rgb
from imagegpt.images.decoding import decode_image, load_low_bytes
from imagegpt.images.metadata import apply_orientation
from imagegpt.images.reading import open_file, read_image, resize_image

logger = logging.getLogger(__name__)

_BLACK = (0, 0, 0)
_LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF", "HEIF")


def num_visible_from_fraction(keep: float, num_pixels: int) -> int:
    """Convert a fraction to a number of pixels, rounded half to even.

    Raises: ValueError if no pixel is left to complete.
    """
    keep = ranges.KEEP.check("keep", keep)
    num_visible = round(keep * num_pixels)
    if num_visible == num_pixels:
        raise ValueError(f"keep is {keep}, which is all of {num_pixels} pixels: leave at least one to complete")
    return num_visible


def num_visible_from_rows(rows: Any, height: int, width: int) -> int:
    """Convert a number of rows to a number of pixels.

    Raises: ValueError unless `rows` is an integer that leaves a row to complete.
    """
    rows = ranges.ROWS.check("rows", rows)
    if rows >= height:
        raise ValueError(f"rows is {rows!r}: an image has {height}, keep an integer from 0 to {height - 1}")
    return rows * width


def read_mask(mask: Any, height: int, width: int, resize_mode: str = "crop") -> Bool[np.ndarray, "{height} {width}"]:
    """Read a mask: True where it is not black, for the pixels to keep.

    Lossy formats such as JPEG have no exact black; in them pixels nearer to white than to black are kept. A mask of
    another size is resized to the model's by nearest neighbour; unless every block of equal pixels becomes one pixel,
    a warning is logged.

    Args:
        mask: an image of any kind and size.
        resize_mode: as for images, so that a mask of an image's size covers the same region, see
            `ImageGPTImageProcessor`.
    Raises: ValueError if it cannot be read.
    """
    if isinstance(mask, Tensor):
        mask = mask.detach().cpu().ne(0).numpy()
    elif isinstance(mask, np.ndarray):
        mask = mask != 0  # in any dtype, so that 1 counts as white
    try:
        original = _not_black(mask)
    except ValueError as error:
        raise ValueError(f"the mask cannot be used: {error}") from error
    size = {"height": height, "width": width}
    resized = resize_image(Image.fromarray(original.astype(np.uint8)), size, resize_mode, Image.Resampling.NEAREST) > 0
    factor = max(1, original.shape[0] // height)
    # Compare shapes first: repeating a long narrow mask would need much memory.
    is_multiple = original.shape == (factor * height, factor * width)
    if not is_multiple or not np.array_equal(resized.repeat(factor, axis=0).repeat(factor, axis=1), original):
        is_cropped = resize_mode == "crop" and original.shape[0] * width != original.shape[1] * height
        logger.warning(
            "the mask is %s x %s pixels, the model's images are %s x %s: it was %sresized by nearest neighbour",
            *(original.shape[1], original.shape[0], width, height),
            "cropped and " if is_cropped else "",
        )
    return resized


def _not_black(mask: Any) -> Bool[np.ndarray, "h w"]:
    if isinstance(mask, str | os.PathLike):
        with open_file(Path(mask)) as image:
            return _not_black_in_image(image, str(mask))
    if isinstance(mask, Image.Image):
        return _not_black_in_image(mask, "the image")
    return np.asarray(read_image(mask, _BLACK)).max(axis=-1) > 0


def _not_black_in_image(image: Image.Image, name: str) -> Bool[np.ndarray, "h w"]:
    threshold = 128 if image.format in _LOSSY_FORMATS else 1
    low_bytes = load_low_bytes(image)
    image = decode_image(image, name)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):  # low levels would become black in 8 bits
        values = np.asarray(image)
        return (values != 0) & (values != image.info.get("transparency", 0))
    not_black = np.asarray(convert_to_rgb(image, _BLACK)).max(axis=-1) >= threshold
    if low_bytes is not None:  # a 16-bit image
        not_black |= _not_black_in_low_bytes(apply_orientation(low_bytes), image)
    return not_black


def _not_black_in_low_bytes(low_bytes: Image.Image, image: Image.Image) -> Bool[np.ndarray, "h w"]:
    """Find pixels of a 16-bit image that are not black in their low bytes, and not fully transparent."""
    not_black = np.asarray(low_bytes.convert("RGB")).max(axis=-1) > 0
    if image.mode == "RGBA":
        opaque = np.asarray(image.getchannel("A")) > 0
        if low_bytes.mode == "RGBA":
            opaque |= np.asarray(low_bytes.getchannel("A")) > 0
        not_black &= opaque
    return not_black


def num_visible_from_mask(kept: Bool[np.ndarray, "h w"]) -> int:
    """Count the pixels that a mask keeps, which must be the first ones.

    Raises: ValueError if they are not, or if all are kept.
    """
    if kept.all():
        raise ValueError(f"the mask keeps all of {kept.size} pixels: leave at least one to complete")
    num_visible = int(kept.argmin())  # index of the first hidden pixel
    later = np.flatnonzero(kept.ravel()[num_visible:])
    if len(later):
        row, column = divmod(num_visible + int(later[0]), kept.shape[1])
        raise ValueError(
            f"the mask keeps the pixel at row {row}, column {column} (counted from 0) but not all before it: this "
            "model samples row by row from the top and cannot fill holes, so keep only the first pixels, or use a "
            "BERT model"
        )
    return num_visible


def num_visible_pixels(
    height: int, width: int, resize_mode: str, *, keep: float | None, rows: int | None, mask: Any
) -> int:
    """Count the pixels to keep by a fraction, rows or a mask; half of them if none is given.

    Raises: ValueError if several are given, no pixel is left to complete, or the mask cannot be read.
    """
    given = [name for name, value in (("keep", keep), ("rows", rows), ("mask", mask)) if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} were given: give only one of them")
    if rows is not None:
        return num_visible_from_rows(rows, height, width)
    if mask is not None:
        return num_visible_from_mask(read_mask(mask, height, width, resize_mode))
    return num_visible_from_fraction(0.5 if keep is None else keep, height * width)
