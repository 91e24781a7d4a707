"""The handwritten digits of scikit-learn as pixel ids, in three fixed parts.

So far one data set: the handwritten digits that scikit-learn brings along, 1,797 grey images of 8x8 pixels with the
values 0 to 16. Seventeen levels make an exact palette, so a likelihood of the ids is a likelihood of the images.

Axis letters: N images, T pixels in raster order.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from imagegpt.images.palette import ColorPalette

_DIGIT_SIDE = 8
_DIGIT_LEVELS = 17
_TEST_PER_CLASS = 36
_VALIDATION_PER_CLASS = 14
_SPLIT_SALT = b"imagegpt digits split 1"


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Some images of a data set.

    Attributes:
        ids: the pixels, ids of the data set's palette.
        labels: the class of each image.
        indices: where each image stands in its source, ascending.
    """

    ids: Int64[Tensor, "n t"]
    labels: Int64[Tensor, " n"]
    indices: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageData:
    """A data set, split once and for all.

    Attributes:
        name: what a user calls it.
        palette: the colours the ids stand for.
        side: pixels along each edge of its square images; T = side * side.
        train: for the weights.
        validation: for every choice: when to stop, the architecture, the smoothing of a baseline.
        test: for the one number that is reported.
    """

    name: str
    palette: ColorPalette
    side: int
    train: Part
    validation: Part
    test: Part


def load_digits() -> ImageData:
    """The digits of scikit-learn: 1,297 images to train on, 140 to validate, 360 to test.

    The id of a pixel is its level. In each class the images are sorted by the SHA-256 of a salt and their 64 levels;
    the first 36 are for testing, the next 14 for validation. So the split depends on the pixels only: not on a random
    generator, nor on the order in which a library lists them. No image occurs twice.

    The source mixes the writers of its images, and says not who wrote which: the same hand may be in all three parts.
    """
    from sklearn.datasets import load_digits as read_digits  # here: it takes a second, and few commands need it

    pixels, classes = read_digits(return_X_y=True)
    levels, labels = np.asarray(pixels).astype(np.uint8), np.asarray(classes).astype(np.int64)
    test, validation = _choose_held_out(levels, labels)
    train = np.setdiff1d(np.arange(len(levels)), np.concatenate([test, validation]))

    def part(indices: NDArray[np.int64]) -> Part:
        return Part(
            ids=torch.from_numpy(levels[indices].astype(np.int64)),
            labels=torch.from_numpy(labels[indices]),
            indices=torch.from_numpy(indices),
        )

    return ImageData(
        name="digits",
        palette=ColorPalette.grey(_DIGIT_LEVELS),
        side=_DIGIT_SIDE,
        train=part(train),
        validation=part(validation),
        test=part(test),
    )


def load_data(name: str) -> ImageData:
    """A data set by name.

    Raises: ValueError if there is none of that name.
    """
    sources: dict[str, Callable[[], ImageData]] = {"digits": load_digits}
    if name not in sources:
        raise ValueError(f"there is no data set {name!r}: choose one of {', '.join(sources)}")
    return sources[name]()


def _choose_held_out(
    levels: NDArray[np.uint8], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices, ascending, of the images for testing and for validation."""
    test: list[int] = []
    validation: list[int] = []
    for label in range(10):
        members: Iterable[int] = np.flatnonzero(labels == label).tolist()
        ranked = sorted(members, key=lambda index: hashlib.sha256(_SPLIT_SALT + levels[index].tobytes()).digest())
        test += ranked[:_TEST_PER_CLASS]
        validation += ranked[_TEST_PER_CLASS:][:_VALIDATION_PER_CLASS]
    return np.array(sorted(test), np.int64), np.array(sorted(validation), np.int64)
