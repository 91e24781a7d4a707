"""The handwritten digits of scikit-learn: 1,797 grey images of 8 x 8 pixels with 17 levels, in three fixed splits.

The levels are spread over 0 to 255. The palette of 17 greys encodes them exactly, so a likelihood of the ids is a
likelihood of the images.

Axis letters: n images, T = 64 pixels in raster order.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from imagegpt.data.sources.base import Example, ImageSource, SourceFormat
from imagegpt.images.palette import ColorPalette
from imagegpt.images.processor import ImageGPTImageProcessor

_NAME, _SIDE, _NUM_LEVELS = "digits", 8, 17
_TEST_PER_CLASS, _VALIDATION_PER_CLASS = 36, 14
_SPLIT_SALT = b"imagegpt digits split 1"


@dataclass(frozen=True, kw_only=True, eq=False)
class DigitsSplit:
    """The images of a split.

    Attributes:
        levels: the pixels, 0 to 16.
        labels: the digit of each image.
        indices: the index of each image in scikit-learn's data set, ascending.
    """

    levels: UInt8[np.ndarray, "n 64"]
    labels: Int64[np.ndarray, " n"]
    indices: Int64[np.ndarray, " n"]


def load_digits() -> dict[str, DigitsSplit]:
    """Load the digits, split into 1,297 images for training, 140 for validation and 360 for testing.

    The images of each class are sorted by the SHA-256 of a salt and their 64 levels; the first 36 are for testing, the
    next 14 for validation. So the split depends on the pixels only, not on a random generator or the order in which a
    library lists them. No image occurs twice.

    scikit-learn does not say which images were written by the same person: one hand may be in all three splits.
    """
    from sklearn.datasets import load_digits as read_digits  # here: it takes a second, and few commands need it

    pixels, classes = read_digits(return_X_y=True)
    levels, labels = np.asarray(pixels).astype(np.uint8), np.asarray(classes).astype(np.int64)
    chosen: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for label in range(10):
        members: list[int] = np.flatnonzero(labels == label).tolist()
        members.sort(key=lambda index: hashlib.sha256(_SPLIT_SALT + levels[index].tobytes()).digest())
        chosen["test"] += members[:_TEST_PER_CLASS]
        chosen["validation"] += members[_TEST_PER_CLASS:][:_VALIDATION_PER_CLASS]
        chosen["train"] += members[_TEST_PER_CLASS + _VALIDATION_PER_CLASS :]
    rows = {split: np.array(sorted(indices), np.int64) for split, indices in chosen.items()}
    return {
        split: DigitsSplit(levels=levels[indices], labels=labels[indices], indices=indices)
        for split, indices in rows.items()
    }


class DigitsSource(ImageSource):
    """One split of the digits."""

    def __init__(self, split: str) -> None:
        self.name, self.split, self.classes = _NAME, split, [str(digit) for digit in range(10)]
        digits = load_digits()[split]
        grey = ColorPalette.grey(_NUM_LEVELS).decode(digits.levels.astype(np.int64))[..., 0]
        self._images = grey.reshape(-1, _SIDE, _SIDE).astype(np.uint8)
        self._labels, self._indices = digits.labels, digits.indices

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.split,)

    def __len__(self) -> int:
        return len(self._images)

    def _read(self, index: int) -> Example:
        name = f"digit {self._indices[index]}"
        return Example(image=self._images[index], label=self._label(index), name=name)

    @property
    def location(self) -> str:
        """See `ImageSource`; a folder may have the same name."""
        return self.name


class DigitsFormat(SourceFormat):
    """The name "digits"."""

    description = "digits"

    def matches(self, location: str) -> bool:
        """See `SourceFormat`."""
        return location == _NAME

    def splits(self, location: str) -> list[str]:
        """See `SourceFormat`."""
        return ["train", "validation", "test"]

    def open(self, location: str, split: str | None) -> DigitsSource:
        """See `SourceFormat`."""
        return DigitsSource(str(split))

    def processor(self) -> ImageGPTImageProcessor:
        """See `SourceFormat`: 17 greys, 8 x 8 pixels."""
        return ImageGPTImageProcessor(palette=ColorPalette.grey(_NUM_LEVELS), size=_SIDE)
