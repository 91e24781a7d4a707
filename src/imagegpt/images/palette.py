"""`ColorPalette`: V colours as tokens, pixels to ids and ids to pixels.

The format is OpenAI's `kmeans_centers.npy`: float32 (V, 3), `rgb / 127.5 - 1`, row i is token i. Encoding is exact, by
the table in `palette_lookup`.

Axis letters: V palette colours.
"""

import hashlib
import io
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, Integer, Shaped, UInt8
from numpy.typing import ArrayLike, DTypeLike

from imagegpt.common import ranges
from imagegpt.files.atomic import atomic_write
from imagegpt.images.palette_checks import (
    as_float64,
    check_pixels,
    describe_range,
    load_json_clusters,
    load_npy_clusters,
    validate_clusters,
)
from imagegpt.images.palette_fitting import fit_colors, pixel_blocks
from imagegpt.images.palette_lookup import NearestColorTable

PALETTE_FILE = "kmeans_centers.npy"  # OpenAI's name
PROCESSOR_FILE = "preprocessor_config.json"  # transformers' name; the palette is its "clusters"


@dataclass(frozen=True, eq=False)
class PaletteReport:
    """Reconstruction error and colour usage of a palette on a set of images.

    Attributes:
        mse: mean squared error per channel, on the 0..255 scale, against the palette's 8-bit colours.
        psnr_db: 10 log10(255^2 / mse); infinite if every pixel is reproduced exactly.
        usage: int64 (V,), number of pixels per colour.
        num_unused: colours without pixels.
        perplexity: exp of the entropy of the usage, 1 (one colour) to V (all used equally).
    """

    num_pixels: int
    mse: float
    psnr_db: float
    usage: Int64[np.ndarray, " v"]
    num_unused: int
    perplexity: float

    def __str__(self) -> str:
        used = len(self.usage) - self.num_unused
        return (
            f"{self.num_pixels:,} pixels: PSNR {self.psnr_db:.2f} dB, {used:,} of {len(self.usage):,} colours used, "
            f"perplexity {self.perplexity:.1f}"
        )


class ColorPalette:
    """V colours; row i is token i. Immutable, equal by content, safe to share between threads.

    Args:
        clusters: (V, 3) colours in [-1, 1], `rgb / 127.5 - 1`; stored as float32. V is 2 to 65,536.
    Raises: ValueError for another shape, values that are not finite or outside [-1, 1], or too few or many colours.
    """

    __slots__ = ("_clusters", "_is_grey", "_rgb", "_table")

    def __init__(self, clusters: ArrayLike) -> None:
        self._clusters = _read_only(validate_clusters(clusters))
        scaled = 127.5 * (self._clusters.astype(np.float64) + 1)
        self._rgb = _read_only(np.rint(scaled).clip(0, 255).astype(np.uint8))
        self._is_grey = bool((self._clusters == self._clusters[:, :1]).all())
        # Distances to 8-bit colours are exact integers, so that a pixel half-way between two of them is a tie. Stored
        # as float32, centres are up to 8e-6 off, which would break such ties at random.
        has_8_bit_colors = np.abs(scaled - np.rint(scaled)).max() < 1e-4
        self._table = NearestColorTable(np.rint(scaled) if has_8_bit_colors else scaled)

    @classmethod
    def from_rgb(cls, rgb: ArrayLike) -> "ColorPalette":
        """Create a palette from values 0..255: (V, 3) colours, or (V,) or (V, 1) grey levels.

        Raises: ValueError for another shape or values outside 0..255.
        """
        values = as_float64(rgb, "the palette")
        if values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1):
            values = np.repeat(values.reshape(-1, 1), 3, axis=1)
        if not (np.isfinite(values).all() and (values >= 0).all() and (values <= 255).all()):
            raise ValueError(f"the palette's values range {describe_range(values)}: RGB values must be 0 to 255")
        return cls(values / 127.5 - 1)

    @classmethod
    def grey(cls, num_colors: int) -> "ColorPalette":
        """Create a palette of evenly spaced grey levels from 0 to 255, each rounded to an integer.

        Raises: ValueError unless `num_colors` is 2 to 256.
        """
        num_colors = ranges.GREY_LEVELS.check("num_colors", num_colors)
        return cls.from_rgb(np.rint(np.linspace(0, 255, num_colors)))

    @classmethod
    def fit(
        cls,
        images: Iterable[Shaped[np.ndarray, "..."]],
        num_colors: int = 512,
        *,
        seed: int = 0,
        grey: bool = False,
        max_pixels: int = 1 << 20,
    ) -> "ColorPalette":
        """Fit a palette to images by k-means, see `palette_fitting.fit_colors`.

        Args:
            images: uint8 arrays (..., 3), one array or an iterable of arrays, read once.
            num_colors: V. If the images have exactly this many distinct colours, those are the palette.
            seed: of the pixel sample and of k-means; the same images and seed give the same palette.
            grey: convert pixels to luma (as Pillow's "L") first; the colours are then grey levels.
            max_pixels: size of the uniform sample of pixels for k-means. Memory is about 50 bytes per sampled pixel.
        Returns: distinct 8-bit colours, sorted from dark to light (by luma, then red, green, blue).
        Raises: ValueError if there are fewer distinct colours than `num_colors`, or for arrays of another kind.
        """
        return cls.from_rgb(fit_colors(images, num_colors, seed=seed, grey=grey, max_pixels=max_pixels))

    @property
    def clusters(self) -> Float32[np.ndarray, "v 3"]:
        """The colours in [-1, 1]; read-only."""
        return self._clusters

    @property
    def rgb(self) -> UInt8[np.ndarray, "v 3"]:
        """The colours as 8-bit RGB, `rint(127.5 * (c + 1))`; read-only."""
        return self._rgb

    @property
    def num_colors(self) -> int:
        """V; also the id of a model's start token, which is not a colour."""
        return len(self._clusters)

    @property
    def is_grey(self) -> bool:
        """Whether red, green and blue are equal in every colour."""
        return self._is_grey

    @property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the clusters, as little-endian float32."""
        return hashlib.sha256(self._clusters.astype("<f4").tobytes()).hexdigest()[:16]

    def __len__(self) -> int:
        return self.num_colors

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ColorPalette):
            return NotImplemented
        return np.array_equal(self._clusters, other._clusters)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"ColorPalette({self.num_colors} {'grey levels' if self.is_grey else 'colours'}, {self.fingerprint})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._clusters,)

    def __copy__(self) -> "ColorPalette":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "ColorPalette":
        return self

    def encode(
        self, rgb: UInt8[np.ndarray, "*shape 3"], *, dtype: DTypeLike = np.int64
    ) -> Integer[np.ndarray, "*shape"]:
        """Replace every pixel by the id of its nearest colour.

        The distance is `(r - R)^2 + (g - G)^2 + (b - B)^2` summed in that order in float64, (R, G, B) being
        `127.5 * (c + 1)`; for palettes of 8-bit colours (all centres within 1e-4 of an integer) it is exact integer
        arithmetic. Ties go to the lower id.

        Args:
            rgb: 8-bit colours in the last axis.
            dtype: of the ids. Models expect int64; np.uint16 fits any palette in a quarter of the space.
        Raises: ValueError if `rgb` is not uint8 (..., 3), or `dtype` cannot hold V - 1.
        """
        check_pixels(rgb)
        ids_dtype = np.dtype(dtype)
        bits = 8 * ids_dtype.itemsize - (ids_dtype.kind == "i")
        if ids_dtype.kind not in "iu" or 1 << bits < self.num_colors:
            raise ValueError(f"ids up to {self.num_colors - 1} do not fit {ids_dtype}: choose int64 or uint16")
        flat = np.ascontiguousarray(rgb).reshape(-1)
        ids = np.empty(rgb.shape[:-1], ids_dtype)
        self._table.lookup(flat, ids.reshape(-1))
        return ids

    def decode(self, ids: Integer[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
        """Return the 8-bit colour of every id.

        Raises: ValueError if an id is not 0 to V - 1 (the start token is V), or ids are not integers.
        """
        ids = np.asarray(ids)
        if ids.dtype.kind not in "iu":
            raise ValueError(f"ids are {ids.dtype}: they must be integers, 0 to {self.num_colors - 1}")
        if ids.size and (ids.min() < 0 or ids.max() >= self.num_colors):
            hint = f"; {self.num_colors} is the start token, drop it first" if ids.max() == self.num_colors else ""
            raise ValueError(
                f"ids range from {ids.min()} to {ids.max()}, this palette has colours 0 to {self.num_colors - 1}{hint}"
            )
        return self._rgb[ids]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the clusters as `.npy`, float32 (V, 3), atomically.

        Raises: ValueError if the name does not end in .npy; OSError if it cannot be written.
        """
        path = Path(path)
        if path.suffix != ".npy":
            raise ValueError(f"palettes are saved as .npy, not {path.name!r}: choose a name such as {PALETTE_FILE}")
        buffer = io.BytesIO()
        np.save(buffer, self._clusters, allow_pickle=False)
        atomic_write(path, buffer.getvalue(), "the palette")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ColorPalette":
        """Load an `.npy` file, a `preprocessor_config.json`, or a folder that contains either (json first).

        Raises: FileNotFoundError if there is none; ValueError if the file is damaged, pickled or of another shape.
        """
        path = Path(path)
        if path.is_dir():
            found = [path / name for name in (PROCESSOR_FILE, PALETTE_FILE) if (path / name).is_file()]
            if not found:
                raise FileNotFoundError(
                    f"{path} contains no palette: expected {PROCESSOR_FILE} or {PALETTE_FILE} in it"
                )
            path = found[0]
        if not path.is_file():
            raise FileNotFoundError(f"there is no palette at {path}: give an .npy or .json file, or a folder with one")
        clusters = load_json_clusters(path) if path.suffix == ".json" else load_npy_clusters(path)
        try:
            return cls(clusters)
        except ValueError as error:
            raise ValueError(f"{path} is not a palette: {error}") from error

    def report(self, images: Iterable[Shaped[np.ndarray, "..."]]) -> PaletteReport:
        """Measure reconstruction error and usage on uint8 images (..., 3): one array, or an iterable, read once.

        Raises: ValueError if there are no pixels, or for arrays of another kind.
        """
        usage = np.zeros(self.num_colors, np.int64)
        total_error = 0
        for pixels in pixel_blocks(images):
            ids = self.encode(pixels)
            usage += np.bincount(ids, minlength=self.num_colors)
            error = pixels.astype(np.int32) - self._rgb[ids]
            total_error += int(np.einsum("nc,nc->", error, error, dtype=np.int64))
        num_pixels = int(usage.sum())
        if not num_pixels:
            raise ValueError("there are no pixels to report on: give at least one image")
        mse = total_error / (3 * num_pixels)
        probabilities = usage[usage > 0] / num_pixels
        return PaletteReport(
            num_pixels=num_pixels,
            mse=mse,
            psnr_db=10 * math.log10(255**2 / mse) if mse else math.inf,
            usage=_read_only(usage),
            num_unused=int((usage == 0).sum()),
            perplexity=float(np.exp(-(probabilities * np.log(probabilities)).sum())),
        )


def _read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
