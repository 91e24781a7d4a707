"""Reading encoded pictures: any of them, straight from the mapped files.

Nothing is read before it is asked for, and a copy that was pickled maps the files anew, so a data set larger than
memory can be given to many processes of a data loader.

Axis letters: N images of the data set, n images asked for, T pixels in raster order.
"""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Int64, Integer, UInt64

from imagegpt.data import encoding_folder as places
from imagegpt.data.encoding_settings import EncodingSettings
from imagegpt.data.encoding_shards import open_shard
from imagegpt.data.sources.tables import saved_splits
from imagegpt.data.splits import choose_split
from imagegpt.images.palette import PROCESSOR_FILE, ColorPalette
from imagegpt.images.processor import ImageGPTImageProcessor

_SHOWN = 3  # damaged files in an error


class EncodedImages:
    """The images in a folder that `encode_images` wrote; see `load`.

    Attributes:
        folder: where they are.
        split: of the source they came from, None if it had none.
        classes: the name of each label, None if there are none.
        height: H, pixels.
        width: W, pixels.
        palette: what the ids stand for.
    """

    def __init__(self, folder: Path, settings: EncodingSettings) -> None:
        self.folder, self.split, self.classes, self._settings = folder, settings.split, settings.classes, settings
        self.height, self.width = settings.size
        self.palette = _palette(folder, settings)
        batches = [open_shard(folder / settings.file(number))[0] for number in range(settings.num_shards)]
        self._ids = [batch.column("ids").values.to_numpy().reshape(-1, self.num_pixels) for batch in batches]
        self._label_columns = [batch.column("label") for batch in batches]
        self._index_columns = [batch.column("index") for batch in batches]
        self._hash_columns = [batch.column("pixel_hash") for batch in batches]
        self._starts = np.concatenate([[0], np.cumsum([len(ids) for ids in self._ids])])

    @classmethod
    def load(cls, folder: str | os.PathLike[str], split: str | None = None) -> Self:
        """Open encoded images, and see that they are, byte for byte, what was written.

        That reads all of them once, about a second for each gigabyte and core; copies for other processes are not
        checked again.

        Args:
            folder: as `encode_images` wrote it.
            split: which of its splits, if it has any ("val" and "valid" mean "validation").
        Raises: FileNotFoundError or ValueError, in one sentence, if there are no encoded images, encoding them was not
            finished, a file is damaged, the palette is not the one they were encoded with, or the split is not as it
            should be.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}: encode images into it first (imagegpt encode)")
        manifest = places.read_manifest(folder)
        if manifest is not None:
            if split is not None:
                there = manifest.settings.split
                choose_split(str(folder), [] if there is None else [there], split)
            return cls._opened(folder, manifest)
        if not (folder / places.SPLITS_FILE).is_file():
            raise FileNotFoundError(
                f"{folder} holds no encoded images, or not all of them: (re)start imagegpt encode for this folder"
            )
        chosen = choose_split(str(folder), saved_splits(folder), split)
        assert chosen is not None, "the file lists at least one split"
        manifest = places.read_manifest(folder / chosen)
        if manifest is None:
            raise FileNotFoundError(f"{folder / chosen} holds no encoded images: encode them again")
        return cls._opened(folder / chosen, manifest)

    @classmethod
    def _opened(cls, folder: Path, manifest: places.Manifest) -> Self:
        if not manifest.finished:
            raise ValueError(f"encoding into {folder} was stopped before its end: give the same imagegpt encode again")
        settings = manifest.settings
        if len(manifest.checksums) != settings.num_shards:
            raise ValueError(
                f"{folder / places.MANIFEST} has the checksums of {len(manifest.checksums)} files, there must be "
                f"{settings.num_shards}: give the same imagegpt encode again"
            )
        _, damage = places.examine_shards(folder, manifest, range(settings.num_shards))
        if damage:
            more = f", and so are {len(damage) - _SHOWN} more" if len(damage) > _SHOWN else ""
            raise ValueError(
                f"{', '.join(damage[:_SHOWN])}{more}: give the same imagegpt encode again, which makes again what is "
                "damaged or missing"
            )
        return cls(folder, settings)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self._settings)  # was checked here

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        return f"EncodedImages({len(self)} images of {self.height}x{self.width}, {self.palette}, {str(self.folder)!r})"

    @property
    def num_pixels(self) -> int:
        """T."""
        return self.height * self.width

    @cached_property
    def processor(self) -> ImageGPTImageProcessor:
        """What the images were encoded with."""
        return ImageGPTImageProcessor.from_json_file(self.folder / PROCESSOR_FILE)

    @cached_property
    def labels(self) -> Int64[np.ndarray, " N"]:
        """The class of every image, -1 where there is none; read-only."""
        return _joined(self._label_columns)

    @cached_property
    def indices(self) -> Int64[np.ndarray, " N"]:
        """Where every image stands in the source, ascending; the broken ones are missing. Read-only."""
        return _joined(self._index_columns)

    @cached_property
    def hashes(self) -> UInt64[np.ndarray, " N"]:
        """The `identity.pixel_hash` of the picture that every image was made of; read-only."""
        return _joined(self._hash_columns)

    def ids(self, indices: Sequence[int] | Integer[np.ndarray, " n"]) -> Int64[np.ndarray, "n t"]:
        """The ids of some images, in the order asked for, 0 to `len(self) - 1`.

        Raises: IndexError if there is no such image; ValueError if the indices are not whole numbers in a row.
        """
        wanted = np.asarray(indices)
        if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
            raise ValueError(f"the indices are {wanted.dtype} {wanted.shape}: give a row of whole numbers")
        wanted = wanted.astype(np.int64)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(
                f"images {wanted.min()} to {wanted.max()} were asked for, there are {len(self)}, numbered from 0"
            )
        rows = np.empty((len(wanted), self.num_pixels), np.int64)
        shards = np.searchsorted(self._starts, wanted, side="right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            rows[here] = self._ids[shard][wanted[here] - self._starts[shard]]
        return rows


def _palette(folder: Path, settings: EncodingSettings) -> ColorPalette:
    palette = ColorPalette.load(folder / PROCESSOR_FILE)
    if palette.fingerprint != settings.palette:
        raise ValueError(
            f"the palette in {folder / PROCESSOR_FILE} is {palette.fingerprint}, the images were encoded with "
            f"{settings.palette:.40}: put the former file back, or encode them again"
        )
    return palette


def _joined(columns: Sequence[Any]) -> Integer[np.ndarray, " N"]:
    values = np.concatenate([column.to_numpy(zero_copy_only=True) for column in columns])
    values.setflags(write=False)
    return values
