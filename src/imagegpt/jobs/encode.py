"""Encoding pictures once, so that training reads ids: `encode_images`.

Several processes make shards, each from a stretch of the source; what they hold depends on nothing but the settings in
`encoding.json`. Killed at any moment, the same call goes on to the same bytes, and several calls at the same time share
the work. The folder is described in `encoding_folder`.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from imagegpt.common import ranges
from imagegpt.data import encoding_folder as places
from imagegpt.data.broken_images import MAX_BROKEN, BrokenImage, check_broken
from imagegpt.data.encoding_settings import EncodingSettings
from imagegpt.data.encoding_shards import Shard
from imagegpt.data.hashing import source_fingerprint, source_stamp
from imagegpt.data.palettes import checked_palette
from imagegpt.data.sources.base import ImageSource
from imagegpt.data.sources.registry import list_splits, open_images
from imagegpt.files.atomic import atomic_write
from imagegpt.files.locks import remove_if_unused
from imagegpt.files.paths import expand_home
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.jobs.encode_pool import ShardPool, check_room
from imagegpt.jobs.encode_worker import Part, ShardMaker

Progress = Callable[[int, int], None]
_Tell = Callable[[int], None]


class _Make(Protocol):
    """Makes shards; see `ShardPool.make`."""

    def __call__(
        self, missing: Sequence[int], tell: _Tell, *, wait_for_others: bool
    ) -> Iterator[tuple[int, Shard | None]]: ...


_WORTH_PROCESSES = 2_000  # images; a worker takes seconds to start, because reading images imports torch


@dataclass(frozen=True, kw_only=True)
class EncodedPart:
    """What became of one split.

    Attributes:
        split: its name, None if the source has none.
        folder: where it is.
        num_source: pictures in the source.
        num_images: those that are encoded.
        num_new: of the source, read in this call, or by others meanwhile; the rest was there.
        broken: those that could not be read.
        classes: the names of the labels, None if there are none.
    """

    split: str | None
    folder: Path
    num_source: int
    num_images: int
    num_new: int
    broken: list[BrokenImage]
    classes: list[str] | None


@dataclass(frozen=True, kw_only=True)
class EncodingReport:
    """What `encode_images` did.

    Attributes:
        parts: one for each split, or one for all.
        elapsed_s: how long it took.
    """

    parts: list[EncodedPart]
    elapsed_s: float

    @property
    def num_images(self) -> int:
        """Images that are encoded, in all parts."""
        return sum(part.num_images for part in self.parts)

    @property
    def broken(self) -> list[BrokenImage]:
        """Images that could not be read, of all parts."""
        return [one for part in self.parts for one in part.broken]

    @property
    def images_per_s(self) -> float:
        """Images read in this call, broken or not, a second."""
        return sum(part.num_new for part in self.parts) / max(self.elapsed_s, 1e-9)


def encode_images(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str],
    processor: ImageGPTImageProcessor,
    *,
    split: str | None = None,
    num_workers: int | None = None,
    max_broken: float = MAX_BROKEN,
    shard_size: int | None = None,
    on_progress: Progress | None = None,
) -> EncodingReport:
    """Write the pictures of a source as ids into a folder, those shards that are not there yet.

    `datasets.load_from_disk` and `EncodedImages.load` open it: the columns are `ids`, uint16 (T,) in raster order;
    `label`, a ClassLabel where the classes have names and int64 otherwise, -1 for a picture without; `index`, where the
    picture stands in its source; and `pixel_hash`, uint64, of the picture itself. A source with splits, none of which
    was chosen, becomes a folder of such folders. Broken pictures are left out, and listed in `encoding.json`. Memory
    holds a shard for each worker. A source whose content has changed since is refused, not encoded again. Shards
    that are there are read; those that are damaged are named in a warning, and made again.

    Args:
        src: as `open_images` takes it.
        out: made if it is not there; may hold such an encoding, and nothing else.
        processor: with a palette.
        split: None is all of them.
        num_workers: processes; 1 works in this one. None is one for each core, or 1 if there is little to do.
        max_broken: the share of pictures of a split, 0 to 1, that may be broken.
        shard_size: pictures of the source a file; None chooses by their number.
        on_progress: called with the pictures that were read, those that were there included, and how many there are.
    Raises: ValueError or OSError, in one sentence, for values outside these ranges, a source or folder that cannot be
        used, an encoding with other settings, or too many broken pictures; what was done by then stays.
    """
    started = time.monotonic()
    places.check_pyarrow()
    checked_palette(processor)
    num_workers = ranges.WORKERS.check_if_given("num_workers", num_workers)
    shard_size = ranges.SHARD_IMAGES.check_if_given("shard_size", shard_size)
    max_broken = ranges.BROKEN_SHARE.check("max_broken", max_broken)
    folder = Path(out)
    names = [] if split is not None else list_splits(src)
    sources = [open_images(src, split=name) for name in names or [split]]
    folders = [folder / name for name in names] or [folder]
    places.check_folder(folder, names)
    jobs = [
        _Job(_part(source, processor, place, shard_size), max_broken)
        for source, place in zip(sources, folders, strict=True)
    ]
    for one in [damage for job in jobs for damage in job.check()]:
        warnings.warn(f"{one} and is made again", stacklevel=2)
    with _claimed(folder):
        total = _Total(jobs, on_progress)
        with _shard_pool(jobs, num_workers) as pool:
            parts = [
                job.run(total, None if pool is None else partial(pool.make, part)) for part, job in enumerate(jobs)
            ]
        if names:
            _describe_splits(folder, names, processor)
    return EncodingReport(parts=parts, elapsed_s=time.monotonic() - started)


def default_shard_size(num_images: int) -> int:
    """Pictures a file: small enough for several workers and little memory, and not more than about 500 files."""
    return max(1024, min(8192, -(-num_images // 16)), -(-num_images // 512))


class _Total:
    """Pictures that were read, over all parts."""

    def __init__(self, jobs: "list[_Job]", on_progress: Progress | None) -> None:
        self._on_progress = on_progress
        self._total = sum(job.settings.num_source for job in jobs)
        self._done = sum(job.num_there for job in jobs)
        self.show(0)

    def show(self, more: int) -> None:
        """Tell how many there are with `more` of the present part."""
        if self._on_progress is not None:
            self._on_progress(self._done + more, self._total)

    def add(self, num: int) -> None:
        """A part is done."""
        self._done += num


class _Job:
    """One part of an encoding."""

    def __init__(self, part: Part, max_broken: float) -> None:
        self.part, self.source, self.folder, self.settings = part, part.source, part.folder, part.settings
        self.max_broken = max_broken
        self.shards: dict[int, Shard] = {}

    def check(self) -> list[str]:
        """See that the folder may be used, and what is there already.

        Returns: what is wrong with the shards that should be there.
        Raises: ValueError or OSError, in one sentence, if it may not.
        """
        if self.folder.parent.is_dir():  # the folder of a split may have to be made with it
            places.check_folder(self.folder)
        there = places.read_manifest(self.folder)
        if there is None:
            return []
        differences = there.settings.differences(self.settings)
        if differences:
            raise ValueError(
                f"the images in {self.folder} were encoded with another {' and another '.join(differences)}: "
                "give the same, or choose another folder"
            )
        found, damage = places.examine_shards(self.folder, there, self.missing)
        self.shards |= found
        return damage

    @property
    def num_there(self) -> int:
        """Pictures of the source in shards that are done."""
        return sum(len(self.settings.stretch(number)) for number in self.shards)

    @property
    def missing(self) -> list[int]:
        """Numbers of the shards that are not."""
        return [number for number in range(self.settings.num_shards) if number not in self.shards]

    def run(self, total: _Total, make: _Make | None) -> EncodedPart:
        """Make the shards that are missing, and what belongs beside them; in this process if `make` is None."""
        self.folder.mkdir(exist_ok=True)
        with places.folder_locked(self.folder):
            places.remove_temporaries(self.folder)
            if places.read_manifest(self.folder) is None:
                places.write_manifest(self.folder, self.settings, {})
        num_before = self.num_there
        self.check()  # once more: another process may have begun meanwhile
        total.add(self.num_there - num_before)
        self._check_broken()
        num_missing = self.settings.num_source - self.num_there
        self._make_missing(total, make or self._make_here)
        self.part.check_unchanged()
        with places.folder_locked(self.folder):
            self.part.processor.save_pretrained(self.folder)
            places.write_descriptions(self.folder, self.settings, _fingerprint(self.settings))
            checksums = {self.settings.file(number): shard.checksum for number, shard in self.shards.items()}
            places.write_manifest(self.folder, self.settings, checksums, self.shards)
            places.remove_shard_locks(self.folder)
        return EncodedPart(
            split=self.source.split,
            folder=self.folder,
            num_source=self.settings.num_source,
            num_images=sum(shard.num_images for shard in self.shards.values()),
            num_new=num_missing,
            broken=self._broken(),
            classes=self.settings.classes,
        )

    def _make_missing(self, total: _Total, make: _Make) -> None:
        """Make the shards that are missing: first those that no other command is making."""
        for wait_for_others in (False, True):
            if not self.missing:
                return
            num_before = self.num_there
            for number, shard in make(self.missing, total.show, wait_for_others=wait_for_others):
                if shard is not None:
                    self.shards[number] = shard
                    self._check_broken()
            total.add(self.num_there - num_before)

    def _make_here(
        self, missing: Sequence[int], tell: _Tell, *, wait_for_others: bool
    ) -> Iterator[tuple[int, Shard | None]]:
        count = 0

        def add(num: int) -> None:
            nonlocal count
            count += num
            tell(count)

        maker = ShardMaker(**vars(self.part), tell=add)
        for number in missing:
            yield number, maker.make(number, wait_for_others=wait_for_others)

    def _broken(self) -> list[BrokenImage]:
        return [one for number in sorted(self.shards) for one in self.shards[number].broken]

    def _check_broken(self) -> None:
        check_broken(self._broken(), self.settings.num_source, f"images of {self.source.name}", self.max_broken)


def _part(source: ImageSource, processor: ImageGPTImageProcessor, folder: Path, shard_size: int | None) -> Part:
    stamp = source_stamp(source)  # first, so that a change while the content is read is noticed, too
    settings = _settings(source, processor, shard_size)
    return Part(source=source, processor=processor, folder=folder, settings=settings, stamp=stamp)


def _settings(source: ImageSource, processor: ImageGPTImageProcessor, shard_size: int | None) -> EncodingSettings:
    palette = checked_palette(processor)
    path = Path(expand_home(source.name))
    options = processor.to_dict()
    return EncodingSettings(
        source=str(path.resolve()) if path.exists() and source.name != "digits" else source.name,
        split=source.split,
        source_fingerprint=source_fingerprint(source),
        num_source=len(source),
        classes=source.classes,
        palette=palette.fingerprint,
        num_colors=palette.num_colors,
        processor={key: options[key] for key in ("size", "resize_mode", "resample", "background")},
        shard_size=default_shard_size(len(source)) if shard_size is None else shard_size,
        version=importlib.metadata.version("imagegpt"),
    )


@contextlib.contextmanager
def _shard_pool(jobs: "list[_Job]", num_workers: int | None) -> Iterator[ShardPool | None]:
    """Processes for what is missing, or None if this one does it."""
    num_missing = sum(job.settings.num_source - job.num_there for job in jobs)
    workers = min(_workers(num_workers, num_missing), sum(len(job.missing) for job in jobs))
    check_room([job.settings for job in jobs], num_missing, max(1, workers), jobs[0].folder)
    if workers <= 1:
        yield None
        return
    with ShardPool([job.part for job in jobs], workers) as pool:
        yield pool


def _workers(asked: int | None, num_images: int) -> int:
    if asked is not None:
        return asked
    if num_images < _WORTH_PROCESSES:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _describe_splits(folder: Path, names: list[str], processor: ImageGPTImageProcessor) -> None:
    with places.folder_locked(folder):
        places.remove_temporaries(folder)
        processor.save_pretrained(folder)
        content = json.dumps({"splits": names}) + "\n"
        atomic_write(folder / places.SPLITS_FILE, content.encode(), "the list of splits")


def _fingerprint(settings: EncodingSettings) -> str:
    """What `datasets` tells this data set by; its own are random, which would make every encoding another one."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """The folder, made if need be; removed again if nothing came into it."""
    is_new = not folder.exists()
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OSError(f"{folder} cannot be made ({error.strerror}): choose another place") from error
    try:
        yield
    finally:
        if is_new:
            remove_if_unused(folder)
