"""Encoded images: any of them, straight from memory-mapped files.

Nothing is read before it is asked for, and a pickled copy maps the files again, so a data set larger than memory can be
given to many processes of a data loader.

Axis letters: N images of the data set, n of them, T pixels in raster order.
"""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Int64, Integer, UInt64

from imagegpt.data import encoding_folder as encoding
from imagegpt.data.augmentation import find_augmentation
from imagegpt.data.datasets import TokenDataset
from imagegpt.data.encoding_shards import EncodingSettings, open_shard
from imagegpt.data.sources.saved import SPLITS_FILE, saved_splits
from imagegpt.data.splits import choose_split
from imagegpt.images.palette import PROCESSOR_FILE, ColorPalette
from imagegpt.images.processor import ImageGPTImageProcessor

_SHOWN = 3  # damaged files in an error
_MAX_UNNAMED_CLASSES = 1 << 20  # a label beyond is no class but, for example, a number that identifies the image


class EncodedDataset(TokenDataset):
    """The images in a folder that `encode` wrote.

    Opening verifies the checksum of every file, which takes about a second for each gigabyte and core; pickled copies
    are not verified again.

    Attributes `folder` and `split` are those of the images themselves: of one split, None if the source had none.

    Args:
        folder: as written by `encode`.
        split: one of its splits, if it has any ("val" and "valid" mean "validation").
        augmentation: its name; one that applies to token ids.

    Attributes:
        label_range: the lowest and the highest label; -1 is an image without one.
        class_names: the names of the labels in the source; None if they have none. `classes` are these names, or the
            labels as text if every image has one.
    Raises: FileNotFoundError or ValueError, in one sentence, if there are no encoded images, encoding did not finish, a
        file is damaged, the palette is not the one they were encoded with, there is no such split, or the augmentation
        changes colours.
    """

    def __init__(self, folder: str | os.PathLike[str], split: str | None = None, augmentation: str = "none") -> None:
        folder, settings = _find_encoding(Path(folder), split)
        self._map_files(folder, settings, augmentation)

    def _map_files(self, folder: Path, settings: EncodingSettings, augmentation: str) -> None:
        self.folder, self.split, self.class_names, self._settings = folder, settings.split, settings.classes, settings
        self.size, self.augmentation = settings.size, find_augmentation(augmentation)
        if not self.augmentation.applies_to_ids:
            raise ValueError(
                f"data.augmentation is {augmentation!r}, and data.train has ids, whose colours cannot change: train on "
                "the images themselves, or choose flip or reflect-crop-flip"
            )
        self.palette = _palette(folder, settings)
        batches = [open_shard(folder / settings.file(number))[0] for number in range(settings.num_shards)]
        self._ids = [batch.column("ids").values.to_numpy().reshape(-1, self.num_pixels) for batch in batches]
        self._labels = [_as_array(batch.column("label")) for batch in batches]
        self._index_columns = [batch.column("index") for batch in batches]
        self._hash_columns = [batch.column("pixel_hash") for batch in batches]
        self._starts = np.concatenate([[0], np.cumsum([len(ids) for ids in self._ids])])
        self.label_range = (
            min((int(labels.min(initial=0)) for labels in self._labels), default=0),
            max((int(labels.max(initial=0)) for labels in self._labels), default=0),
        )
        self.classes = self.class_names
        if self.classes is None and len(self) and self.label_range[0] >= 0:
            self.classes = numbered_classes(self.label_range[1])

    @classmethod
    def _reopened(cls, folder: Path, settings: EncodingSettings, augmentation: str, classes: list[str] | None) -> Self:
        self = object.__new__(cls)
        self._map_files(folder, settings, augmentation)
        self.classes = classes
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._reopened, (self.folder, self._settings, self.augmentation.name, self.classes)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        height, width = self.size
        return f"EncodedDataset({len(self)} images of {height}x{width}, {self.palette}, {str(self.folder)!r})"

    @cached_property
    def processor(self) -> ImageGPTImageProcessor:
        """The processor that encoded the images."""
        return ImageGPTImageProcessor.from_json_file(self.folder / PROCESSOR_FILE)

    @property
    def labels(self) -> Int64[np.ndarray, " N"] | None:
        """See `TokenDataset`."""
        return None if self.classes is None else np.concatenate(self._labels)

    def read_labels(self, indices: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"] | None:
        """See `TokenDataset`."""
        return None if self.classes is None else self._gather(self._labels, indices)

    @cached_property
    def indices(self) -> Int64[np.ndarray, " N"]:
        """The index of every image in the source, ascending; broken images are missing. Read-only."""
        return _joined(self._index_columns)

    @cached_property
    def _hashes(self) -> UInt64[np.ndarray, " N"]:
        return _joined(self._hash_columns)

    @property
    def hashes(self) -> UInt64[np.ndarray, " N"]:
        """See `TokenDataset`; read-only."""
        return self._hashes

    def _read(
        self, indices: Int64[np.ndarray, " n"], rngs: Sequence[np.random.Generator] | None
    ) -> Int64[np.ndarray, "n t"]:
        ids = self._gather(self._ids, indices)
        return ids if rngs is None else np.ascontiguousarray(self.augmentation.augment_ids(ids, rngs, self.size))

    def _gather(self, shards: Sequence[np.ndarray], indices: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, "n ..."]:
        """Return rows of arrays that hold one shard each."""
        rows = np.empty((len(indices), *shards[0].shape[1:]), np.int64)
        numbers = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(numbers):
            here = numbers == number
            rows[here] = shards[number][indices[here] - self._starts[number]]
        return rows


def numbered_classes(highest: int) -> list[str] | None:
    """Name the classes 0 to `highest` by their numbers; None if these are too many to be classes."""
    return [str(label) for label in range(highest + 1)] if highest < _MAX_UNNAMED_CLASSES else None


def _find_encoding(folder: Path, split: str | None) -> tuple[Path, EncodingSettings]:
    """Return the folder of one split and its settings, verified."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: encode images into it first (imagegpt encode)")
    manifest = encoding.read_manifest(folder)
    if manifest is not None:
        if split is not None:
            own = manifest.settings.split
            choose_split(str(folder), [] if own is None else [own], split)
        return folder, _verified_settings(folder, manifest)
    if not (folder / SPLITS_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} holds no encoded images, or not all of them: (re)start imagegpt encode for this folder"
        )
    chosen = choose_split(str(folder), saved_splits(folder), split)
    assert chosen is not None, "the file lists at least one split"
    manifest = encoding.read_manifest(folder / chosen)
    if manifest is None:
        raise FileNotFoundError(f"{folder / chosen} holds no encoded images: encode them again")
    return folder / chosen, _verified_settings(folder / chosen, manifest)


def _verified_settings(folder: Path, manifest: encoding.Manifest) -> EncodingSettings:
    """Return the settings of an encoding.

    Raises: ValueError if it is not finished or a file is damaged.
    """
    if not manifest.finished:
        raise ValueError(f"encoding into {folder} did not finish: run the same imagegpt encode again")
    settings = manifest.settings
    if len(manifest.checksums) != settings.num_shards:
        raise ValueError(
            f"{folder / encoding.MANIFEST} has the checksums of {len(manifest.checksums)} files, there must be "
            f"{settings.num_shards}: run the same imagegpt encode again"
        )
    damage = encoding.verify_shards(folder, manifest)
    if damage:
        more = f", and so are {len(damage) - _SHOWN} more" if len(damage) > _SHOWN else ""
        raise ValueError(
            f"{', '.join(damage[:_SHOWN])}{more}: run the same imagegpt encode again, which replaces what is damaged "
            "or missing"
        )
    return settings


def _palette(folder: Path, settings: EncodingSettings) -> ColorPalette:
    palette = ColorPalette.load(folder / PROCESSOR_FILE)
    if palette.fingerprint != settings.palette:
        raise ValueError(
            f"the palette in {folder / PROCESSOR_FILE} is {palette.fingerprint}, the images were encoded with "
            f"{settings.palette:.40}: restore the original file, or encode them again"
        )
    return palette


def _as_array(column: Any) -> Integer[np.ndarray, " n"]:
    return column.to_numpy(zero_copy_only=True)


def _joined(columns: Sequence[Any]) -> Integer[np.ndarray, " N"]:
    values = np.concatenate([_as_array(column) for column in columns])
    values.setflags(write=False)
    return values
