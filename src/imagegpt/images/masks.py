"""What is kept of an image: a share of its pixels, rows of it, or what a mask says.

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
from imagegpt.images.color_conversion import picture_to_rgb
from imagegpt.images.decoding import decoded, second_bytes
from imagegpt.images.metadata import turned_upright
from imagegpt.images.reading import open_file, read_image, resize_image

logger = logging.getLogger(__name__)

_BLACK = (0, 0, 0)
_LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF", "HEIF")


def pixels_of_share(keep: float, num_pixels: int) -> int:
    """How many pixels a share of them is: the nearest whole number, halves to the even one.

    Raises: ValueError if that leaves none to draw.
    """
    keep = ranges.KEEP.check("keep", keep)
    num_kept = round(keep * num_pixels)
    if num_kept == num_pixels:
        raise ValueError(f"keep is {keep}, which is all of {num_pixels} pixels: leave at least one to complete")
    return num_kept


def pixels_of_rows(rows: Any, height: int, width: int) -> int:
    """How many pixels some rows have.

    Raises: ValueError for anything but a whole number that leaves a row to draw.
    """
    rows = ranges.ROWS.check("rows", rows)
    if rows >= height:
        raise ValueError(f"rows is {rows!r}: an image has {height}, keep a whole number from 0 to {height - 1}")
    return rows * width


def read_mask(mask: Any, height: int, width: int, resize_mode: str = "crop") -> Bool[np.ndarray, "{height} {width}"]:
    """Which pixels of an image a mask keeps: those where it is not black.

    Files of formats that change what was drawn, such as JPEG, are nowhere quite black: there, what is nearer to white
    is kept. A mask of another size is brought to the model's, by the nearest pixel; unless each of its blocks of pixels
    becomes one, a warning is logged.

    Args:
        mask: an image of any kind and size.
        height: of the model's images.
        width: of the model's images.
        resize_mode: as images are resized, so that a mask as large as an image covers the same part of it; see
            `ImageGPTImageProcessor`.
    Raises: ValueError if it cannot be read.
    """
    if isinstance(mask, Tensor):
        mask = mask.detach().cpu().ne(0).numpy()
    elif isinstance(mask, np.ndarray):
        mask = mask != 0  # whatever its type: 1 is white, too
    try:
        given = _not_black(mask)
    except ValueError as error:
        raise ValueError(f"the mask cannot be used: {error}") from error
    size = {"height": height, "width": width}
    kept = resize_image(Image.fromarray(given.astype(np.uint8)), size, resize_mode, Image.Resampling.NEAREST) > 0
    factor = max(1, given.shape[0] // height)
    # If it is no multiple, a long narrow mask would be repeated to a huge one.
    fits = given.shape == (factor * height, factor * width)
    if not fits or not np.array_equal(kept.repeat(factor, axis=0).repeat(factor, axis=1), given):
        logger.warning(
            "the mask is %s x %s pixels, the model's images are %s x %s: it was %sresized, to the nearest pixel",
            *(given.shape[1], given.shape[0], width, height),
            "cropped and " if resize_mode == "crop" and given.shape[0] * width != given.shape[1] * height else "",
        )
    return kept


def _not_black(mask: Any) -> Bool[np.ndarray, "h w"]:
    if isinstance(mask, str | os.PathLike):
        with open_file(Path(mask)) as picture:
            return _not_black_in(picture, str(mask))
    if isinstance(mask, Image.Image):
        return _not_black_in(mask, "the image")
    return np.asarray(read_image(mask, _BLACK)).max(axis=-1) > 0


def _not_black_in(picture: Image.Image, name: str) -> Bool[np.ndarray, "h w"]:
    lowest = 128 if picture.format in _LOSSY_FORMATS else 1
    lower = second_bytes(picture)
    picture = decoded(picture, name)
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):  # in 8 bits the lower levels would be black
        values = np.asarray(picture)
        return (values != 0) & (values != picture.info.get("transparency", 0))
    kept = np.asarray(picture_to_rgb(picture, _BLACK)).max(axis=-1) >= lowest
    if lower is not None:  # of 16 bits
        kept |= _visible_in_second_bytes(turned_upright(lower), picture)
    return kept


def _visible_in_second_bytes(lower: Image.Image, picture: Image.Image) -> Bool[np.ndarray, "h w"]:
    """Where a picture of 16 bits is not black in its lower halves, and not quite transparent."""
    shown = np.asarray(lower.convert("RGB")).max(axis=-1) > 0
    if picture.mode == "RGBA":
        opaque = np.asarray(picture.getchannel("A")) > 0
        if lower.mode == "RGBA":
            opaque |= np.asarray(lower.getchannel("A")) > 0
        shown &= opaque
    return shown


def pixels_of_mask(kept: Bool[np.ndarray, "h w"]) -> int:
    """How many pixels a mask keeps, if these are the first.

    Raises: ValueError if they are not, or all are kept.
    """
    if kept.all():
        raise ValueError(f"the mask keeps all of {kept.size} pixels: leave at least one to complete")
    num_kept = int(kept.argmin())  # up to the first that is not kept
    behind = np.flatnonzero(kept.ravel()[num_kept:])
    if len(behind):
        row, column = divmod(num_kept + int(behind[0]), kept.shape[1])
        raise ValueError(
            f"the mask keeps the pixel at row {row}, column {column} (counted from 0) but not all before it: "
            "this model draws row by row from the top and cannot fill holes, which takes a BERT model, "
            "so keep only pixels that come first"
        )
    return num_kept
