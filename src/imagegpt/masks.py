"""What is kept of an image: a share of its pixels, rows of it, or what a mask says.

Axes: H rows, W columns.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from imagegpt import ranges
from imagegpt.images import read_image


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


def read_mask(mask: Any, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
    """Which pixels of an image a mask keeps: those where it is not black.

    Args:
        mask: an image of any kind, of the model's size or a whole number of times as large.
        height: of the model's images.
        width: of the model's images.
    Raises: ValueError if it cannot be read, has another size, or keeps a part of a pixel.
    """
    if isinstance(mask, Tensor):
        mask = mask.detach().cpu().ne(0).numpy()
    elif isinstance(mask, np.ndarray):
        mask = mask != 0  # whatever its type: 1 is white, too
    try:
        white = np.asarray(read_image(mask, (0, 0, 0))).max(axis=-1) > 0
    except ValueError as error:
        raise ValueError(f"the mask cannot be used: {error}") from error
    given_height, given_width = white.shape
    factor = max(1, given_height // height)
    if (given_height, given_width) != (height * factor, width * factor):
        raise ValueError(
            f"the mask is {given_width} x {given_height} pixels, the model's images are {width} x {height}: "
            "give one of that size, or a whole number of times as large"
        )
    blocks = white.reshape(height, factor, width, factor)
    kept: np.ndarray = blocks.all(axis=(1, 3))
    partly = np.argwhere(kept != blocks.any(axis=(1, 3)))
    if len(partly):
        raise ValueError(
            f"the mask keeps only a part of the pixel at row {partly[0][0]}, column {partly[0][1]} (counted from 0): "
            f"make its {factor} x {factor} pixels all white or all black"
        )
    return kept


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
