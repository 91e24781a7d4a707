"""Colours as tokens: a palette of V colours, pixels to ids and ids to pixels.

The format is OpenAI's `kmeans_centers.npy`: float32 (V, 3), `rgb / 127.5 - 1`, row i is token i. What is unusual is the
lookup: a table of all 2^24 colours, exact, computed cube by cube when a colour of that cube is first seen. Comparing
every pixel with every colour is about 600 times slower, filling the whole table up front takes seconds.

Axis letters: N pixels, V palette colours, K candidate colours of one cube, S side of a cube, n cubes or pixels at once.
"""

import hashlib
import io
import math
import os
import threading
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
    check_pixels,
    checked_clusters,
    clusters_in_json,
    clusters_in_npy,
    real_array,
    value_range,
)
from imagegpt.images.palette_fitting import fit_colors, pixel_blocks

PALETTE_FILE = "kmeans_centers.npy"  # OpenAI's name
PROCESSOR_FILE = "preprocessor_config.json"  # transformers' name; the palette is its "clusters"

_CUBE = 16  # side S of the cubes of colours computed at once; 8 is no faster cold and 8 times as many steps
_CHUNK = 16_384  # pixels looked up at once: their codes and ids (160 kB) stay in a core's second-level cache
_CULL_CELLS = 1 << 21  # cubes x colours compared at once while culling


@dataclass(frozen=True, eq=False)
class PaletteReport:
    """How well a palette serves some images.

    Attributes:
        num_pixels: pixels seen.
        mse: mean squared error of a channel, on the 0..255 scale, against the palette's 8-bit colours.
        psnr_db: 10 log10(255^2 / mse); infinite when every pixel is reproduced.
        usage: int64 (V,), pixels that took each colour.
        num_unused: colours no pixel took.
        perplexity: exp of the entropy of the usage, 1 (one colour) to V (all equally often).
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
        clusters: (V, 3) colours on the scale -1..1, `rgb / 127.5 - 1`; kept as float32. V is 2 to 65,536.
    Raises: ValueError for another shape, values that are not finite or outside [-1, 1], or too few or many colours.
    """

    __slots__ = ("_centres", "_clusters", "_distinct", "_done", "_is_grey", "_lock", "_rgb", "_table")

    def __init__(self, clusters: ArrayLike) -> None:
        self._clusters = _frozen(checked_clusters(clusters))
        scaled = 127.5 * (self._clusters.astype(np.float64) + 1)
        self._rgb = _frozen(np.rint(scaled).clip(0, 255).astype(np.uint8))
        # A palette of 8-bit colours is compared in exact integers, so that a pixel half-way between two of them is a
        # tie; float32 leaves its centres up to 8e-6 off, which would break such ties at random.
        self._centres = np.rint(scaled) if np.abs(scaled - np.rint(scaled)).max() < 1e-4 else scaled
        # Of equal colours only the first can be the answer.
        self._distinct = np.sort(np.unique(self._centres, axis=0, return_index=True)[1])
        self._is_grey = bool((self._clusters == self._clusters[:, :1]).all())
        self._table: np.ndarray | None = None  # 2^24 values; allocated, like its pages, when first needed
        self._done = np.zeros((256 // _CUBE) ** 3, bool)
        self._lock = threading.Lock()

    @classmethod
    def from_rgb(cls, rgb: ArrayLike) -> "ColorPalette":
        """A palette from values 0..255: (V, 3) colours, or (V,) or (V, 1) grey levels.

        Raises: ValueError for another shape or values outside 0..255.
        """
        values = real_array(rgb, "the palette")
        if values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1):
            values = np.repeat(values.reshape(-1, 1), 3, axis=1)
        if not (np.isfinite(values).all() and (values >= 0).all() and (values <= 255).all()):
            raise ValueError(f"the palette's values run {value_range(values)}: RGB values must lie in 0 to 255")
        return cls(values / 127.5 - 1)

    @classmethod
    def grey(cls, num_colors: int) -> "ColorPalette":
        """Evenly spaced grey levels from 0 to 255, each rounded to a whole level.

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
        """Choose colours for some images by mini-batch k-means; the steps are in `palette_fitting.fit_colors`.

        Args:
            images: uint8 arrays (..., 3), one array or any iterable of them, read once and not kept.
            num_colors: V. If the images have exactly this many distinct colours, those are the palette.
            seed: of the sample and of k-means; the same images and seed give the same palette.
            grey: reduce pixels to luma (as Pillow's "L") first; the colours are then grey levels.
            max_pixels: pixels k-means sees, drawn uniformly from all. Memory stays within about 50 bytes for each.
        Returns: 8-bit colours, all different, sorted from dark to light (by luma, then red, green, blue).
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
        """V; also the id of a model's start token, which is no colour."""
        return len(self._clusters)

    @property
    def is_grey(self) -> bool:
        """Whether red, green and blue are equal in every colour."""
        return self._is_grey

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the content: the sha256 of the little-endian float32 clusters."""
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
        `127.5 * (c + 1)`; for palettes of 8-bit colours (all centres within 1e-4 of whole levels) it is exact integer
        arithmetic. Equal distances go to the lower id.

        Args:
            rgb: 8-bit colours in the last axis.
            dtype: of the ids. int64 is what models take; np.uint16 stores any palette in a quarter of it.
        Raises: ValueError if `rgb` is not uint8 (..., 3), or `dtype` cannot hold V - 1.
        """
        check_pixels(rgb)
        ids_dtype = np.dtype(dtype)
        bits = 8 * ids_dtype.itemsize - (ids_dtype.kind == "i")
        if ids_dtype.kind not in "iu" or 1 << bits < self.num_colors:
            raise ValueError(f"ids up to {self.num_colors - 1} do not fit {ids_dtype}: choose int64 or uint16")
        flat = np.ascontiguousarray(rgb).reshape(-1)
        ids = np.empty(rgb.shape[:-1], ids_dtype)
        self._lookup(flat, ids.reshape(-1))
        return ids

    def decode(self, ids: Integer[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
        """The 8-bit colour of every id.

        Raises: ValueError if an id is not 0 to V - 1 (a start token left in is V), or ids are not integers.
        """
        ids = np.asarray(ids)
        if ids.dtype.kind not in "iu":
            raise ValueError(f"ids are {ids.dtype}: they must be integers, 0 to {self.num_colors - 1}")
        if ids.size and (ids.min() < 0 or ids.max() >= self.num_colors):
            hint = f"; {self.num_colors} is the start token, drop it first" if ids.max() == self.num_colors else ""
            raise ValueError(
                f"ids run from {ids.min()} to {ids.max()}, this palette has colours 0 to {self.num_colors - 1}{hint}"
            )
        return self._rgb[ids]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the clusters as `.npy`, float32 (V, 3). The file appears whole or not at all.

        Raises: ValueError if the name does not end in .npy; OSError if it cannot be written.
        """
        path = Path(path)
        if path.suffix != ".npy":
            raise ValueError(f"a palette is saved as .npy, not {path.name!r}: choose a name such as {PALETTE_FILE}")
        buffer = io.BytesIO()
        np.save(buffer, self._clusters, allow_pickle=False)
        atomic_write(path, buffer.getvalue(), "the palette")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ColorPalette":
        """Read a palette: an `.npy` file, a `preprocessor_config.json`, or a folder that holds either (json first).

        Raises: FileNotFoundError if there is none; ValueError if the file is damaged, pickled or of another shape.
        """
        path = Path(path)
        if path.is_dir():
            found = [path / name for name in (PROCESSOR_FILE, PALETTE_FILE) if (path / name).is_file()]
            if not found:
                raise FileNotFoundError(f"{path} holds no palette: expected {PROCESSOR_FILE} or {PALETTE_FILE} in it")
            path = found[0]
        if not path.is_file():
            raise FileNotFoundError(f"there is no palette at {path}: give an .npy or .json file, or a folder with one")
        clusters = clusters_in_json(path) if path.suffix == ".json" else clusters_in_npy(path)
        try:
            return cls(clusters)
        except ValueError as error:
            raise ValueError(f"{path} is no palette: {error}") from error

    def report(self, images: Iterable[Shaped[np.ndarray, "..."]]) -> PaletteReport:
        """Measure reconstruction and usage on uint8 images (..., 3): one array, or any iterable of them, read once.

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
        share = usage[usage > 0] / num_pixels
        return PaletteReport(
            num_pixels=num_pixels,
            mse=mse,
            psnr_db=10 * math.log10(255**2 / mse) if mse else math.inf,
            usage=_frozen(usage),
            num_unused=int((usage == 0).sum()),
            perplexity=float(np.exp(-(share * np.log(share)).sum())),
        )

    def _lookup(self, flat: UInt8[np.ndarray, " n3"], ids: Integer[np.ndarray, " n"]) -> None:
        """Write the ids of the pixels in `flat` (channels interleaved) into `ids`, filling the table on the way.

        The table holds `~id`, so that 0, which is what fresh memory holds, means "not computed yet". Only with 65,536
        colours is 0 also an answer; `_fill` then finds nothing to do, and the answer stands.
        """
        table = self._allocated_table()
        num = min(len(ids), _CHUNK)
        codes, inverted = np.empty(num, np.intp), np.empty(num, np.uint16)
        for start in range(0, len(ids), _CHUNK):
            n = min(_CHUNK, len(ids) - start)
            block = flat[3 * start : 3 * (start + n) + 1]
            if block.size == 3 * n:  # the end: one more byte, because pixels are read four bytes at a time
                block = np.append(block, np.uint8(0))
            # r | g << 8 | b << 16, by reading overlapping little-endian words three bytes apart and dropping the top
            # byte: 1 ns a pixel; shifting and adding three strided channels takes two to four.
            words = np.ndarray((n,), "<u4", block, 0, (3,))
            np.bitwise_and(words, 0xFFFFFF, out=codes[:n], casting="unsafe")
            table.take(codes[:n], out=inverted[:n], mode="clip")
            if not inverted[:n].all():
                self._fill(codes[:n][inverted[:n] == 0])
                table.take(codes[:n], out=inverted[:n], mode="clip")
            np.invert(inverted[:n], out=inverted[:n])
            ids[start : start + n] = inverted[:n]

    def _allocated_table(self) -> np.ndarray:
        with self._lock:
            if self._table is None:
                self._table = np.zeros(1 << 24, np.uint16)
            return self._table

    def _fill(self, codes: Int64[np.ndarray, " n"]) -> None:
        """Compute the cubes that hold these colours. One thread at a time; the others read or wait for the lock."""
        r, g, b = (codes >> 8 * channel & 0xFF for channel in range(3))
        num = 256 // _CUBE
        cubes = np.unique(r // _CUBE + num * (g // _CUBE) + num**2 * (b // _CUBE))
        with self._lock:
            assert self._table is not None
            table = self._table.reshape(256, 256, 256)  # axes b, g, r
            cubes = cubes[~self._done[cubes]]
            step = max(1, _CULL_CELLS // len(self._distinct))
            for some in np.split(cubes, range(step, len(cubes), step)):
                corners = _CUBE * np.stack([some % num, some // num % num, some // num**2], axis=1)
                for cube, (x, y, z), kept in zip(some, corners, self._cull(corners), strict=True):
                    nearest = self._nearest(np.array([x, y, z]), self._distinct[kept])
                    table[z : z + _CUBE, y : y + _CUBE, x : x + _CUBE] = ~nearest.astype(np.uint16)
                    self._done[cube] = True

    def _cull(self, corners: Int64[np.ndarray, "n 3"]) -> np.ndarray:
        """Which distinct colours can be nearest somewhere in the cubes from `corner` to `corner + S - 1`: bool (n, K').

        Let j be nearest to the middle m. Elsewhere in the cube, at m + e, colour k trails j by
        `d_k(m) - d_j(m) - 2 e.(k - j)`, which is positive throughout if the gap exceeds `2 max|e| |k - j|_1`.
        """
        half = (_CUBE - 1) / 2
        centres = self._centres[self._distinct]
        middle = corners + half
        gap = sum((np.square(middle[:, None, c] - centres[None, :, c]) for c in range(3)), start=np.zeros(()))
        nearest = centres[np.argmin(gap, axis=1)]
        reach = sum((np.abs(centres[None, :, c] - nearest[:, None, c]) for c in range(3)), start=np.zeros(()))
        # 1e-6 covers rounding: distances are below 2e5, so 1e-10 is the most they can be off.
        return gap - gap.min(axis=1, keepdims=True) <= 2 * half * reach + 1e-6

    def _nearest(self, corner: Int64[np.ndarray, "3"], candidates: Int64[np.ndarray, " k"]) -> np.ndarray:
        """The nearest candidate of every colour in the cube at `corner`, axes (b, g, r); ids ascend, ties to the first.

        The definition is `encode`'s, squares summed red, green, blue.
        """
        levels = corner[:, None] + np.arange(_CUBE)
        r, g, b = (np.square(levels[c][:, None] - self._centres[candidates, c]) for c in range(3))
        nearest = np.empty((_CUBE, _CUBE, _CUBE), np.int64)
        red_green = r[None, :, :] + g[:, None, :]
        for z in range(_CUBE):
            nearest[z] = candidates[np.argmin(red_green + b[z], axis=-1)]
        return nearest


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
