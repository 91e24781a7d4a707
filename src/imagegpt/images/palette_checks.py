"""What a palette accepts: pixels, colours, and the two kinds of file it is stored in.

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
_MOST_BYTES = 4 * 2**20  # of an `.npy`; the largest palette, in float64, has 1.5 MB


def check_pixels(rgb: Any) -> None:
    """Raise ValueError unless `rgb` is a numpy array of uint8 (..., 3)."""
    if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8 or rgb.ndim < 1 or rgb.shape[-1] != 3:
        given = f"{rgb.dtype} {rgb.shape}" if isinstance(rgb, np.ndarray) else f"a {type(rgb).__name__}"
        raise ValueError(f"the pixels are {given}: a palette takes numpy arrays of uint8 (..., 3), RGB 0 to 255")


def real_array(values: ArrayLike, name: str) -> Float64[np.ndarray, "..."]:
    """The values as float64.

    Raises: ValueError, which calls them `name`, unless they are real numbers.
    """
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "iuf":
            raise ValueError(f"values of type {array.dtype}")
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is no table of numbers ({str(error)[:200]}): give rows of three") from error


def value_range(values: np.ndarray) -> str:
    """From where to where the values run, in words."""
    return f"from {values.min():.6g} to {values.max():.6g}" if values.size else "over nothing"


def checked_clusters(clusters: ArrayLike) -> Float32[np.ndarray, "v 3"]:
    """Colours on the scale -1..1 as float32.

    Raises: ValueError for another shape, values that are not finite or outside [-1, 1], or too few or many colours.
    """
    values = real_array(clusters, "the palette")
    if values.ndim != 2 or values.shape[1] != 3:
        raise ValueError(f"the palette has shape {values.shape}: it must be (number of colours, 3)")
    if not ranges.COLORS.lowest <= len(values) <= ranges.COLORS.highest:
        raise ValueError(
            f"the palette has {len(values)} colours: it must have {ranges.COLORS.lowest} to {ranges.COLORS.highest:,}"
        )
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values).all(axis=1)))
        raise ValueError(f"colour {row} of the palette is {values[row].tolist()}: its values must be finite")
    if values.min() < -1 or values.max() > 1:
        raise ValueError(
            f"the palette's values run {value_range(values)}: they must lie in -1 to 1 (rgb / 127.5 - 1); "
            "for RGB values use ColorPalette.from_rgb"
        )
    return np.ascontiguousarray(values + 0.0, np.float32)  # + 0.0: -0.0 and 0.0 are one colour, one fingerprint


def clusters_in_npy(path: Path) -> Any:
    """The array in an `.npy` file; ValueError if there is none, or it would have to be unpickled."""
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise ValueError(f"it has {size:,} bytes, and no palette has more than {_MOST_BYTES:,}")
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"its header is of version {version}, which is for names of columns")
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
        raise ValueError(f"{path} is no readable .npy palette ({reason}): save it again") from error


def clusters_in_json(path: Path) -> Any:
    """The "clusters" of a `preprocessor_config.json`; ValueError if there are none."""
    clusters = validate(read_json(path), dict[str, Any], str(path)).get("clusters")
    if clusters is None:
        raise ValueError(f'{path} has no "clusters": it does not hold a palette')
    return clusters
