"""Exact nearest-colour lookup: a table of all 2^24 RGB colours, filled on demand.

The table is computed cube by cube, when a colour in that cube is first looked up. Comparing every pixel with every
palette colour is about 600 times slower; filling the whole table up front takes seconds.

Axis letters: N pixels, V palette colours, K candidate colours of one cube, S side of a cube, n cubes or pixels at once.
"""

import threading

import numpy as np
from jaxtyping import Float64, Int64, Integer, UInt8

_CUBE = 16  # side S of the cubes; 8 is no faster when cold and takes 8 times as many steps
_CHUNK = 16_384  # pixels looked up at once: their codes and ids (160 kB) fit a core's second-level cache
_CULL_CELLS = 1 << 21  # cubes x colours compared at once while culling


class NearestColorTable:
    """Maps every 8-bit RGB colour to the id of the nearest palette colour; safe to share between threads.

    Distances are `(r - R)^2 + (g - G)^2 + (b - B)^2`, summed in that order in float64. Ties go to the lower id.

    Args:
        centres: the palette colours (R, G, B), on the scale 0..255; V is at most 65,536.
    """

    __slots__ = ("_centres", "_distinct", "_is_filled", "_lock", "_table")

    def __init__(self, centres: Float64[np.ndarray, "v 3"]) -> None:
        self._centres = centres
        # Of equal colours only the first can be the nearest.
        self._distinct = np.sort(np.unique(centres, axis=0, return_index=True)[1])
        self._table: np.ndarray | None = None  # 2^24 values, allocated on first use
        self._is_filled = np.zeros((256 // _CUBE) ** 3, bool)
        self._lock = threading.Lock()

    def lookup(self, flat: UInt8[np.ndarray, " n3"], ids: Integer[np.ndarray, " n"]) -> None:
        """Write the ids of the pixels in `flat` (channels interleaved) into `ids`, filling the table as needed.

        The table stores `~id`, so that 0, the value of newly allocated memory, means "not computed yet". With 65,536
        colours 0 is also a valid entry; `_fill` then has nothing to do, and the entry is used as is.
        """
        table = self._allocated_table()
        num = min(len(ids), _CHUNK)
        codes, inverted = np.empty(num, np.intp), np.empty(num, np.uint16)
        for start in range(0, len(ids), _CHUNK):
            n = min(_CHUNK, len(ids) - start)
            block = flat[3 * start : 3 * (start + n) + 1]
            if block.size == 3 * n:  # the end: append a byte, because pixels are read four bytes at a time
                block = np.append(block, np.uint8(0))
            # r | g << 8 | b << 16, by reading overlapping little-endian words three bytes apart and masking the top
            # byte: 1 ns per pixel; shifting and adding three strided channels takes two to four.
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
        """Compute the cubes that contain these colours. One thread at a time; others read, or wait for the lock."""
        r, g, b = (codes >> 8 * channel & 0xFF for channel in range(3))
        num = 256 // _CUBE
        cubes = np.unique(r // _CUBE + num * (g // _CUBE) + num**2 * (b // _CUBE))
        with self._lock:
            assert self._table is not None
            table = self._table.reshape(256, 256, 256)  # axes b, g, r
            cubes = cubes[~self._is_filled[cubes]]
            step = max(1, _CULL_CELLS // len(self._distinct))
            for batch in np.split(cubes, range(step, len(cubes), step)):
                corners = _CUBE * np.stack([batch % num, batch // num % num, batch // num**2], axis=1)
                for cube, (x, y, z), is_candidate in zip(batch, corners, self._cull(corners), strict=True):
                    nearest = self._nearest(np.array([x, y, z]), self._distinct[is_candidate])
                    table[z : z + _CUBE, y : y + _CUBE, x : x + _CUBE] = ~nearest.astype(np.uint16)
                    self._is_filled[cube] = True

    def _cull(self, corners: Int64[np.ndarray, "n 3"]) -> np.ndarray:
        """Find the distinct colours that can be nearest somewhere in the cubes `corner` to `corner + S - 1`: (n, K').

        Let j be nearest to the middle m. Elsewhere in the cube, at m + e, colour k is farther than j by
        `d_k(m) - d_j(m) - 2 e.(k - j)`, which is positive everywhere if the gap exceeds `2 max|e| |k - j|_1`.
        """
        half = (_CUBE - 1) / 2
        centres = self._centres[self._distinct]
        middle = corners + half
        gap = sum((np.square(middle[:, None, c] - centres[None, :, c]) for c in range(3)), start=np.zeros(()))
        nearest = centres[np.argmin(gap, axis=1)]
        reach = sum((np.abs(centres[None, :, c] - nearest[:, None, c]) for c in range(3)), start=np.zeros(()))
        # 1e-6 covers rounding: distances are below 2e5, so they are off by at most 1e-10.
        return gap - gap.min(axis=1, keepdims=True) <= 2 * half * reach + 1e-6

    def _nearest(self, corner: Int64[np.ndarray, "3"], candidates: Int64[np.ndarray, " k"]) -> np.ndarray:
        """Return the nearest candidate of every colour in the cube at `corner`, axes (b, g, r).

        Candidates ascend, and `argmin` returns the first minimum, so ties go to the lower id.
        """
        levels = corner[:, None] + np.arange(_CUBE)
        r, g, b = (np.square(levels[c][:, None] - self._centres[candidates, c]) for c in range(3))
        nearest = np.empty((_CUBE, _CUBE, _CUBE), np.int64)
        red_green = r[None, :, :] + g[:, None, :]
        for z in range(_CUBE):
            nearest[z] = candidates[np.argmin(red_green + b[z], axis=-1)]
        return nearest
