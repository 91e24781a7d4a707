"""Data sets of images as token ids, for training and evaluation: `torch.utils.data.Dataset`s, made for a `DataLoader`.

    TokenDataset    what all of them share
    ImageDataset    images of a source, decoded and encoded when they are read
    Subset          some images of another data set
    EncodedDataset  images that `imagegpt encode` wrote (in `imagegpt.data.encoded`)

Axis letters: N images of the data set, n of them, H height, W width, T = H * W pixels in raster order.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Int64, Integer, UInt64
from torch import Tensor
from torch.utils.data import Dataset

from imagegpt.data.augmentation import Augmentation, Size, find_augmentation
from imagegpt.data.broken_images import BrokenImage
from imagegpt.data.hashing import SourceHashes, pixel_hashes
from imagegpt.data.palettes import checked_palette
from imagegpt.data.sources.base import ImageSource
from imagegpt.images.palette import ColorPalette
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.images.reading import read_image

Indices = Sequence[int] | Integer[np.ndarray, " n"]


class TokenDataset(Dataset[dict[str, Tensor]], ABC):
    """Images as ids of one palette.

    Items are dictionaries with `input_ids` (T,) and, if there are classes, `labels` (), as transformers' models take
    them. Items are augmented at random (torch's generator decides, as with torchvision's transforms), if the data set
    has an augmentation; `read` leaves that to its caller.

    Subclasses implement `__len__`, `_read`, `labels` and `hashes`. Pickling must not write anything of the size of N:
    a loader's worker processes open files again.

    Attributes:
        palette: the colours that the ids refer to.
        size: H and W.
        classes: the name of each label; None without labels.
        augmentation: applied to images that are read with random generators.
    """

    palette: ColorPalette
    size: Size
    classes: list[str] | None
    augmentation: Augmentation

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _read(
        self, indices: Int64[np.ndarray, " n"], rngs: Sequence[np.random.Generator] | None
    ) -> Int64[np.ndarray, "n t"]: ...

    @property
    @abstractmethod
    def labels(self) -> Int64[np.ndarray, " N"] | None:
        """The class of each image, -1 where it has none; None without classes."""

    @property
    @abstractmethod
    def hashes(self) -> UInt64[np.ndarray, " N"]:
        """The `identity.pixel_hash` of the picture behind each image; 0 if it is broken."""

    def read(self, indices: Indices, rngs: Sequence[np.random.Generator] | None = None) -> Int64[np.ndarray, "n t"]:
        """Return the ids of some images, in the order asked for.

        Args:
            indices: 0 to N - 1.
            rngs: augment each image with its own generator: the same image and state give the same ids. None does not
                augment.
        Raises: IndexError if there is no such image; ValueError if the indices are not integers in one row, there is
            not one generator for each image, or an image cannot be read; OSError likewise.
        """
        checked = _checked_indices(indices, len(self))
        if rngs is not None and len(rngs) != len(checked):
            raise ValueError(f"{len(checked)} images and {len(rngs)} generators were given: give one for each image")
        return self._read(checked, rngs)

    def read_labels(self, indices: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"] | None:
        """Return the labels of some images; None without classes."""
        labels = self.labels
        return None if labels is None else labels[indices]

    def locate(self, indices: Int64[np.ndarray, " n"]) -> "tuple[TokenDataset, Int64[np.ndarray, ' n']]":
        """Return the data set that stores some images, and their indices there: what a worker needs to read them."""
        return self, indices

    def without_augmentation(self) -> Self:
        """Return a view of this data set that never augments."""
        view = object.__new__(type(self))
        vars(view).update(vars(self))
        view.augmentation = self.augmentation.for_evaluation
        return view

    @property
    def num_pixels(self) -> int:
        """T."""
        return self.size[0] * self.size[1]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """Return several items; `DataLoader` calls this for a whole batch."""
        rngs = None
        if self.augmentation.is_random:
            seeds = torch.randint(1 << 62, (len(indices),)).tolist()
            rngs = [np.random.default_rng(seed) for seed in seeds]
        columns = {"input_ids": torch.from_numpy(self.read(indices, rngs))}
        labels = self.read_labels(np.asarray(indices, np.int64))
        if labels is not None:
            columns["labels"] = torch.from_numpy(labels)
        return [{name: column[row] for name, column in columns.items()} for row in range(len(indices))]


class ImageDataset(TokenDataset):
    """The images of a source, encoded when they are read.

    Args:
        source: the images. Broken ones have the hash 0; reading them raises.
        processor: decodes, resizes and encodes them; needs a palette.
        augmentation: its name, see `AUGMENTATIONS`.
    Raises: ValueError if there is no such augmentation or no palette.
    """

    def __init__(self, source: ImageSource, processor: ImageGPTImageProcessor, augmentation: str = "none") -> None:
        self.source, self.processor, self.classes = source, processor, source.classes
        self.augmentation = find_augmentation(augmentation)
        self.palette = checked_palette(processor)
        self.size = processor.size["height"], processor.size["width"]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.source, self.processor, self.augmentation.name)

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def _hashes(self) -> SourceHashes:
        return pixel_hashes(self.source)

    @property
    def hashes(self) -> UInt64[np.ndarray, " N"]:
        """See `TokenDataset`; reads every image that is not in the cache of hashes."""
        return self._hashes.hashes

    @property
    def broken(self) -> list[BrokenImage]:
        """The images that cannot be read."""
        return self._hashes.broken

    @cached_property
    def _source_labels(self) -> Int64[np.ndarray, " N"]:
        return self.source.labels

    @property
    def labels(self) -> Int64[np.ndarray, " N"] | None:
        """See `TokenDataset`."""
        return None if self.classes is None else self._source_labels

    def _read(
        self, indices: Int64[np.ndarray, " n"], rngs: Sequence[np.random.Generator] | None
    ) -> Int64[np.ndarray, "n t"]:
        augmentation = self.augmentation if rngs is not None else self.augmentation.for_evaluation
        rgb = np.empty((len(indices), *self.size, 3), np.uint8)
        for row, index in enumerate(indices.tolist()):
            image = self.source[index].image
            if augmentation.crop is None:
                rgb[row] = self.processor.to_rgb([image])[0]
            else:
                whole = np.asarray(read_image(image, self.processor.background))
                rng = None if rngs is None else rngs[row]
                rgb[row] = augmentation.crop(whole, rng, self.size, self.processor.resample)
        ids = self.palette.encode(rgb).reshape(len(indices), self.num_pixels)
        return ids if augmentation.crop is not None or rngs is None else augmentation.augment_ids(ids, rngs, self.size)


class Subset(TokenDataset):
    """Some images of another data set.

    Args:
        dataset: all of them.
        indices: which.
    """

    def __init__(self, dataset: TokenDataset, indices: Int64[np.ndarray, " m"]) -> None:
        self.dataset = dataset
        # A tensor, not an array: torch hands it to worker processes in shared memory instead of pickling it.
        self._indices = torch.from_numpy(np.array(indices, np.int64))
        self.palette, self.size, self.classes = dataset.palette, dataset.size, dataset.classes
        self.augmentation = dataset.augmentation

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def indices(self) -> Int64[np.ndarray, " N"]:
        """Where each image is in the other data set."""
        return self._indices.numpy()

    def _read(
        self, indices: Int64[np.ndarray, " n"], rngs: Sequence[np.random.Generator] | None
    ) -> Int64[np.ndarray, "n t"]:
        return self.dataset.read(self.indices[indices], rngs)

    @property
    def labels(self) -> Int64[np.ndarray, " N"] | None:
        """See `TokenDataset`."""
        return self.dataset.read_labels(self.indices)

    def read_labels(self, indices: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"] | None:
        """See `TokenDataset`."""
        return self.dataset.read_labels(self.indices[indices])

    @property
    def hashes(self) -> UInt64[np.ndarray, " N"]:
        """See `TokenDataset`."""
        return self.dataset.hashes[self.indices]

    def locate(self, indices: Int64[np.ndarray, " n"]) -> tuple[TokenDataset, Int64[np.ndarray, " n"]]:
        """See `TokenDataset`."""
        return self.dataset.locate(self.indices[indices])

    def without_augmentation(self) -> "Subset":
        """See `TokenDataset`."""
        return Subset(self.dataset.without_augmentation(), self.indices)


def _checked_indices(indices: Indices, num_images: int) -> Int64[np.ndarray, " n"]:
    wanted = np.asarray(indices)
    if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
        raise ValueError(f"the indices are {wanted.dtype} {wanted.shape}: give integers in one dimension")
    wanted = wanted.astype(np.int64)
    if wanted.size and not (wanted.min() >= 0 and wanted.max() < num_images):
        raise IndexError(
            f"images {wanted.min()} to {wanted.max()} were asked for, there are {num_images}, numbered from 0"
        )
    return wanted
