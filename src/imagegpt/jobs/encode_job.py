"""Encoding one split of a source: how a shard is made, checked and recorded.

Axis letters: n images, T pixels in raster order.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from imagegpt.common.memory import check_disk_space, check_memory
from imagegpt.data import encoding_folder as encoding
from imagegpt.data.broken_images import READ_ERRORS, BrokenImage, check_broken
from imagegpt.data.encoding_settings import EncodingSettings
from imagegpt.data.encoding_shards import Shard, shard_bytes
from imagegpt.data.identity import hash_of_picture
from imagegpt.data.palettes import checked_palette
from imagegpt.data.sources.base import UNLABELED, ImageSource, no_warnings
from imagegpt.files.atomic import atomic_write
from imagegpt.files.paths import expand_home
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.images.reading import read_image
from imagegpt.jobs.markers import remove_temporaries
from imagegpt.jobs.plan import Job, Report, ShardPlan, choose_shard_size

_REPORT_EVERY = 16  # images
_MEMORY_BYTES, ID_BYTES = 3 + 2, 2  # per pixel: in memory its colour and its id, in a file its id
_PROCESS_BYTES = 150_000_000  # of a process that has imported torch
_SMALL_SHARD, _FEW_SHARDS = 1024, 16  # few images are cut into 16 shards, so that several processes have work


def default_shard_size(num_images: int, num_pixels: int) -> int:
    """Images per shard of a source with so many images of so many pixels."""
    return choose_shard_size(ID_BYTES * num_pixels, max(_SMALL_SHARD, -(-num_images // _FEW_SHARDS)))


def absolute_name(source: ImageSource) -> str:
    """What identifies a source in settings: its absolute path, or its name if it is not a file or folder."""
    path = Path(expand_home(source.name))
    return str(path.resolve()) if path.exists() and source.name != "digits" else source.name


_Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class EncodeJob(Job):
    """The encoding of a source, or of one of its splits.

    Attributes:
        folder: of the shards.
        source: of the images.
        processor: reads, resizes and encodes them.
        settings: of the encoding.
        max_broken: the fraction of images that may be broken.
        shards: the records of finished shards, as far as they have been reviewed.
    """

    doing: ClassVar[str] = "encodes images into"
    has_records: ClassVar[bool] = True

    folder: Path
    source: ImageSource
    processor: ImageGPTImageProcessor
    settings: EncodingSettings
    max_broken: float
    shards: dict[int, Shard] = field(default_factory=dict, repr=False)

    @property
    def plan(self) -> ShardPlan:
        """See `Job`."""
        return ShardPlan(num_items=self.settings.num_source, shard_size=self.settings.shard_size)

    def make(self, shard: int, report: Report) -> str:
        """See `Job`."""
        path = self.folder / self.settings.file(shard)
        remove_temporaries(self.folder, lambda name: name == path.name)
        columns, broken = self._read(self.plan.items(shard), report)
        content = shard_bytes(self.settings, *columns, broken)
        atomic_write(path, content, "the encoded images")
        return Shard(num_images=len(columns[0]), broken=broken, checksum=hashlib.sha256(content).hexdigest()).to_json()

    def check(self, shard: int, record: str) -> list[str]:
        """See `Job`."""
        try:
            checksum = self._parse(shard, record).checksum
        except ValueError:
            checksum = None  # which no file has
        return encoding.shard_damage(self.folder, self.settings, shard, checksum)

    def check_settings(self) -> None:
        """See `Job`; an encoding is never replaced."""

    def review(self, records: Mapping[int, str]) -> None:
        """Check that not too many images are broken."""
        new = records.keys() - self.shards.keys()
        self.shards.update((shard, self._parse(shard, records[shard])) for shard in new)
        if any(self.shards[shard].broken for shard in new) or not new:
            check_broken(self.broken, self.settings.num_source, f"images of {self.source.name}", self.max_broken)

    @property
    def broken(self) -> list[BrokenImage]:
        """The broken images of the reviewed shards."""
        return [one for shard in sorted(self.shards) for one in self.shards[shard].broken]

    def _parse(self, shard: int, record: str) -> Shard:
        return Shard.from_json(record, f"the record of {self.folder / self.settings.file(shard)}")

    def _read(self, items: range, report: Report) -> tuple[_Columns, list[BrokenImage]]:
        """Read and encode images.

        Returns: ids (n, T), labels, indices and pixel hashes, without the broken images; and these.
        """
        rgb = np.empty((len(items), *self.settings.size, 3), np.uint8)
        labels, indices = np.full(len(items), UNLABELED, np.int64), np.empty(len(items), np.int64)
        hashes, background = np.empty(len(items), np.uint64), self.processor.background
        row, broken = 0, []
        with no_warnings():
            for count, index in enumerate(items, start=1):
                name = f"image {index}"
                try:
                    example = self.source[index]
                    name = example.name
                    picture = read_image(example.image, background)
                    # An array of the right size is used as it is, without reading it again.
                    rgb[row] = self.processor.to_rgb(picture[None] if isinstance(picture, np.ndarray) else [picture])[0]
                    hashes[row] = hash_of_picture(example.image, picture, background)
                except READ_ERRORS as error:
                    broken.append(BrokenImage.of(index, name, error))
                else:
                    labels[row] = UNLABELED if example.label is None else example.label
                    indices[row] = index
                    row += 1
                if count % _REPORT_EVERY == 0 or count == len(items):
                    report(count)
        pixels = rgb.shape[1] * rgb.shape[2]
        ids = checked_palette(self.processor).encode(rgb[:row], dtype=np.uint16).reshape(row, pixels)
        return (ids, labels[:row], indices[:row], hashes[:row]), broken


def check_room(settings: Sequence[EncodingSettings], num_missing: int, num_workers: int, folder: Path) -> None:
    """Check that the shards made at the same time fit into memory, and the missing ones on the disk.

    Args:
        settings: of each split.
        num_missing: images still to be encoded, of all splits.
        num_workers: processes; 1 is the current one.
        folder: of the encoding.
    Raises: ValueError if they do not.
    """
    num_pixels = settings[0].size[0] * settings[0].size[1]
    images = max(min(one.shard_size, one.num_source) for one in settings)
    each = images * num_pixels * _MEMORY_BYTES + (_PROCESS_BYTES if num_workers > 1 else 0)
    check_memory(
        f"encoding {images:,} images of {num_pixels:,} pixels at a time in {num_workers} processes",
        num_workers * each,
        "choose fewer processes (--workers), a smaller size, or a smaller shard_size",
    )
    what = f"encoding {num_missing:,} images of {num_pixels:,} pixels"
    check_disk_space(what, ID_BYTES * num_missing * num_pixels, folder, "make room there, or choose another place")
