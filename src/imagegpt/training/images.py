"""Images to train on or to score: ids that are at hand, and pictures that are encoded when they are asked for.

Axis letters: N images, B of them, T pixels in raster order.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from imagegpt.data.augmentation import Augmentation, AugmentedImages


class IdImages:
    """Images whose ids are at hand, some or all of those of a table; moved about when they are read.

    Args:
        table: gives the ids (B, T) of rows, and is cheap to pickle.
        labels: of each row, -1 where there is none; None if there are none.
        size: height and width.
        rows: which rows these images are; None is all.
        augmentation: one that moves pixels only; None does nothing.
    """

    def __init__(
        self,
        table: Any,
        labels: Int64[np.ndarray, " n"] | None,
        size: tuple[int, int],
        rows: Int64[np.ndarray, " m"] | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        self._table, self._labels, self._size, self._augmentation = table, labels, size, augmentation
        self._rows = rows

    def __len__(self) -> int:
        return len(self._table) if self._rows is None else len(self._rows)

    def read(
        self, indices: Int64[np.ndarray, " b"], generators: Sequence[np.random.Generator]
    ) -> tuple[Int64[np.ndarray, "b t"], Int64[np.ndarray, " b"] | None]:
        """See `feed.Images`."""
        rows = indices if self._rows is None else self._rows[indices]
        ids = self._table.ids(rows)
        if self._augmentation is not None and generators:
            ids = np.ascontiguousarray(self._augmentation.ids(ids, generators, self._size))
        return ids, None if self._labels is None else self._labels[rows]


class PictureImages:
    """Pictures that are read, varied and encoded when they are asked for.

    Args:
        pictures: of a source, with an augmentation.
        rows: which of them these images are; None is all.
        varied: whether they are augmented at all.
    """

    def __init__(
        self, pictures: AugmentedImages, rows: Int64[np.ndarray, " m"] | None = None, varied: bool = True
    ) -> None:
        self._pictures, self._rows, self._varied = pictures, rows, varied

    def __len__(self) -> int:
        return len(self._pictures) if self._rows is None else len(self._rows)

    def read(
        self, indices: Int64[np.ndarray, " b"], generators: Sequence[np.random.Generator]
    ) -> tuple[Int64[np.ndarray, "b t"], Int64[np.ndarray, " b"] | None]:
        """See `feed.Images`."""
        rows = indices if self._rows is None else self._rows[indices]
        seeds = [int(one.integers(1 << 63)) for one in generators] if self._varied and generators else None
        ids, labels = self._pictures.batch(rows.tolist(), seeds)
        return ids, None if self._pictures.classes is None else labels


class ArrayTable:
    """Ids in memory, as a table."""

    def __init__(self, ids: Int64[np.ndarray, "n t"]) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self, rows: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, "b t"]:
        """Of some rows."""
        return self._ids[rows]
