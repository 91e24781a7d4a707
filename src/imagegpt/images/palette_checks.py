"""Validation of a palette's inputs: pixels, colours, and the two file formats.

Axis letters: V palette colours.
"""

import math
import tokenize
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64
from numpy.typing import ArrayLike

from imagegpt.common import ranges
from imagegpt.files.schemas import read_json, validate

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_MAX_NPY_BYTES = 4 * 2**20  # the largest palette, in float64, has 1.5 MB


def check_pixels(rgb: Any) -> None:
    """Raise ValueError unless `rgb` is a numpy array of uint8 (..., 3)."""
    if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8 or rgb.ndim < 1 or rgb.shape[-1] != 3:
        given = f"{rgb.dtype} {rgb.shape}" if isinstance(rgb, np.ndarray) else f"a {type(rgb).__name__}"
        raise ValueError(f"the pixels are {given}: a palette takes numpy arrays of uint8 (..., 3), RGB 0 to 255")


def as_float64(values: ArrayLike, name: str) -> Float64[np.ndarray, "..."]:
    """Convert real numbers to a float64 array.

    Raises: ValueError, with `name` in it, for anything else.
    """
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "iuf":
            raise ValueError(f"values of type {array.dtype}")
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not an array of numbers ({str(error)[:200]}): give rows of three") from error


def describe_range(values: np.ndarray) -> str:
    """Return the minimum and maximum in words, for errors."""
    return f"from {values.min():.6g} to {values.max():.6g}" if values.size else "over no values"


def validate_clusters(clusters: ArrayLike) -> Float32[np.ndarray, "v 3"]:
    """Check colours in [-1, 1] and return them as float32.

    Raises: ValueError for another shape, values that are not finite or outside [-1, 1], or too few or many colours.
    """
    values = as_float64(clusters, "the palette")
    if values.ndim != 2 or values.shape[1] != 3:
        raise ValueError(f"the palette has shape {values.shape}: it must be (number of colours, 3)")
    if not ranges.COLORS.min <= len(values) <= ranges.COLORS.max:
        raise ValueError(
            f"the palette has {len(values)} colours: it must have {ranges.COLORS.min} to {ranges.COLORS.max:,}"
        )
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values).all(axis=1)))
        raise ValueError(f"colour {row} of the palette is {values[row].tolist()}: its values must be finite")
    if values.min() < -1 or values.max() > 1:
        raise ValueError(
            f"the palette's values range {describe_range(values)}: they must be -1 to 1 (rgb / 127.5 - 1); "
            "for RGB values use ColorPalette.from_rgb"
        )
    return np.ascontiguousarray(values + 0.0, np.float32)  # + 0.0 turns -0.0 into 0.0: one fingerprint


def load_npy_clusters(path: Path) -> Any:
    """Load the array of an `.npy` file; ValueError if it is damaged, or would have to be unpickled."""
    try:
        size = path.stat().st_size
        if size > _MAX_NPY_BYTES:
            raise ValueError(f"it has {size:,} bytes, and no palette has more than {_MAX_NPY_BYTES:,}")
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"its header has version {version}, which is for structured arrays")
            shape, _, dtype = _HEADERS[version](file)
            if dtype.hasobject:
                raise ValueError("Object arrays would have to be unpickled, which runs code")
            needed = math.prod(shape) * dtype.itemsize
            if min(shape, default=1) < 0 or needed != size - file.tell():
                raise ValueError(f"its header announces {shape} of {dtype}, and {size - file.tell():,} bytes follow")
            file.seek(0)
            return np.load(file, allow_pickle=False)
    except (OSError, ValueError, TypeError, RecursionError, SyntaxError, tokenize.TokenError) as error:
        reason = " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__
        raise ValueError(f"{path} is not a readable .npy palette ({reason}): save it again") from error


def load_json_clusters(path: Path) -> Any:
    """Load "clusters" from a `preprocessor_config.json`; ValueError if there are none."""
    clusters = validate(read_json(path), dict[str, Any], str(path)).get("clusters")
    if clusters is None:
        raise ValueError(f'{path} has no "clusters": it does not contain a palette')
    return clusters
