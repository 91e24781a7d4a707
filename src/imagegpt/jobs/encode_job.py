"""Encoding one split of a source: how a shard is made, checked and recorded, and what is in the folder.

Axis letters: n images, T pixels in raster order.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from imagegpt.common.memory import check_disk_space, check_memory
from imagegpt.data.broken_images import BrokenImage, check_broken
from imagegpt.data.encoding_folder import INFO_FILE, MANIFEST, read_manifest, write_manifest
from imagegpt.data.encoding_shards import EncodingSettings, Shard, features, shard_bytes, shard_damage
from imagegpt.data.hashing import source_fingerprint, source_stamp
from imagegpt.data.identity import HASH_BACKGROUND, hash_of_rgb, pixel_hash
from imagegpt.data.palettes import checked_palette
from imagegpt.data.sources.base import UNLABELED, Example, ImageSource
from imagegpt.data.sources.saved import SPLITS_FILE, STATE_FILE
from imagegpt.files.atomic import atomic_write
from imagegpt.files.locks import folder_lock
from imagegpt.images.palette import PROCESSOR_FILE
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.images.reading import read_image
from imagegpt.jobs.job_folder import check_content, check_place
from imagegpt.jobs.markers import STATE_FOLDER, joined, remove_temporaries
from imagegpt.jobs.plan import Job, Report, ShardPlan, choose_shard_size

_SHARD = re.compile(r"data-\d{5,}-of-\d{5,}\.(arrow|parquet)")
_REPORT_EVERY = 16  # images
_MEMORY_BYTES, ID_BYTES = 3 + 2, 2  # per pixel: in memory its colour and its id, in a file its id
_PROCESS_BYTES = 150_000_000  # of a process that has imported torch
_SMALL_SHARD, _FEW_SHARDS = 1024, 16  # few images are cut into 16 shards, so that several processes have work


def default_shard_size(num_images: int, num_pixels: int) -> int:
    """Images per shard of a source with so many images of so many pixels."""
    return choose_shard_size(ID_BYTES * num_pixels, max(_SMALL_SHARD, -(-num_images // _FEW_SHARDS)))


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
        return shard_damage(self.folder, self.settings, shard, checksum)

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

        def read(example: Example) -> int | None:
            picture = read_image(example.image, background)
            # An array of the right size is used as it is, without reading it again.
            rgb[row] = self.processor.to_rgb(picture[None] if isinstance(picture, np.ndarray) else [picture])[0]
            hashes[row] = hash_of_rgb(picture) if background == HASH_BACKGROUND else pixel_hash(example.image)
            return example.label

        for count, found in enumerate(self.source.read_each(items, read), start=1):
            if isinstance(found, BrokenImage):
                broken.append(found)
            else:
                labels[row], indices[row] = UNLABELED if found is None else found, items[count - 1]
                row += 1
            if count % _REPORT_EVERY == 0 or count == len(items):
                report(count)
        pixels = rgb.shape[1] * rgb.shape[2]
        ids = checked_palette(self.processor).encode(rgb[:row], dtype=np.uint16).reshape(row, pixels)
        return (ids, labels[:row], indices[:row], hashes[:row]), broken


def check_folder(folder: Path, names: Sequence[str] = ()) -> None:
    """Check that an encoding may use a folder: it does not exist, is empty, or contains an encoding and nothing else.

    Args:
        folder: of one split, or of several.
        names: of the splits; none if the folder contains the shards themselves.
    Raises: ValueError or OSError, in one sentence, if not. Nothing is changed.
    """
    check_place(folder, "encoded images need a folder")
    own = {SPLITS_FILE, PROCESSOR_FILE, *names} if names else {MANIFEST, INFO_FILE, STATE_FILE, PROCESSOR_FILE}
    paths = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    check_content(
        folder, paths, lambda path: path in own or (not names and bool(_SHARD.fullmatch(path))), "this encoding"
    )


@contextlib.contextmanager
def join_encoding(job: EncodeJob) -> Iterator[EncodeJob]:
    """Take part in an encoding, and finish it when the `with` block ends without an error.

    Args:
        job: with all settings but the fingerprint of its source. The parent of its folder must exist.
    Returns: the job with this fingerprint.
    Raises: ValueError if the folder contains another encoding, or the source's files change meanwhile.
    """
    job.folder.mkdir(exist_ok=True)
    stamp = source_stamp(job.source)  # before the content is read, so that a change in between is noticed
    with joined(job.folder, job.doing, lambda _: _agree(job, stamp)) as settings:
        job = dataclasses.replace(job, settings=settings)
        yield job
        if source_stamp(job.source) != stamp:
            raise ValueError(f"the files of {job.source.name} have changed meanwhile: give the same command again")
        _finish(job)


def _agree(job: EncodeJob, stamp: str) -> EncodingSettings:
    remove_temporaries(job.folder, lambda name: not _SHARD.fullmatch(name))
    existing = read_manifest(job.folder)
    if existing is not None and existing.source_stamp == stamp:  # hashing millions of files again would take hours
        fingerprint = existing.settings.source_fingerprint
    else:
        fingerprint = source_fingerprint(job.source)
    settings = dataclasses.replace(job.settings, source_fingerprint=fingerprint)
    differences = existing.settings.differences(settings) if existing else []
    if differences:
        raise ValueError(
            f"the images in {job.folder} were encoded with another {' and another '.join(differences)}: "
            "give the same, or choose another folder"
        )
    if existing is None:
        write_manifest(job.folder, settings, source_stamp=stamp)
    return settings


def _finish(job: EncodeJob) -> None:
    """Write everything beside the shards, all of which are finished."""
    with folder_lock(job.folder, job.doing, wait_s=60):
        job.processor.save_pretrained(job.folder)
        if job.settings.file_format == "arrow":
            _write_descriptions(job.folder, job.settings)
        write_manifest(job.folder, job.settings, [job.shards[one] for one in sorted(job.shards)])


def describe_splits(folder: Path, names: Sequence[str], processor: ImageGPTImageProcessor) -> None:
    """Write what belongs beside the folders of the splits."""
    with folder_lock(folder, EncodeJob.doing, wait_s=60):
        remove_temporaries(folder, lambda _: True)
        processor.save_pretrained(folder)
        content = json.dumps({"splits": list(names)}) + "\n"
        atomic_write(folder / SPLITS_FILE, content.encode(), "the list of splits")


@contextlib.contextmanager
def listed(jobs: Sequence[EncodeJob]) -> Iterator[None]:
    """Let other processes read the lists of images from files, within a `with` block, instead of listing them again."""
    paths = {job.folder / STATE_FOLDER / f".images.{secrets.token_hex(4)}.tmp": job for job in jobs}
    try:
        for path, job in paths.items():
            job.source.save_listing(path)
        yield
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def _write_descriptions(folder: Path, settings: EncodingSettings) -> None:
    """Write what `datasets.load_from_disk` reads."""
    info = {"description": f"Images as ids of the palette {settings.palette}", "features": features(settings)}
    state = {
        "_data_files": [{"filename": settings.file(number)} for number in range(settings.num_shards)],
        # The library's own fingerprints are random, which would make every encoding a different data set.
        "_fingerprint": hashlib.sha256(repr(settings).encode()).hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": settings.split,
    }
    for name, fields in {INFO_FILE: info, STATE_FILE: state}.items():
        atomic_write(folder / name, (json.dumps(fields, indent=2) + "\n").encode(), "the description of the data set")


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
