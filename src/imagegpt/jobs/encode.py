"""Encoding images once, so that training reads ids: `encode`.

The same call resumes an encoding that was killed, and ends with the same bytes; several calls at the same time share
the work. `imagegpt.data.encoding_folder` describes the folder.
"""

import contextlib
import dataclasses
import importlib.metadata
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagegpt.common import ranges
from imagegpt.data.broken_images import MAX_BROKEN, BrokenImage
from imagegpt.data.encoding_settings import EncodingSettings, ShardFormat
from imagegpt.data.palettes import checked_palette
from imagegpt.data.sources.base import ImageSource, missing_library
from imagegpt.data.sources.registry import list_splits, open_images
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.jobs.encode_folder import ChooseSettings, SplitFolder, check_folder, describe_splits, listed
from imagegpt.jobs.encode_job import EncodeJob, absolute_name, check_room, default_shard_size
from imagegpt.jobs.engine import Monitor, Progress, unmark_damaged
from imagegpt.jobs.executors import Executor, ExecutorName, InProcess, choose_executor
from imagegpt.jobs.manifest import new_or_existing
from imagegpt.jobs.markers import Markers
from imagegpt.jobs.ranks import Ranks

_WORTH_PROCESSES = 2_000  # images; a process takes seconds to start, because reading images imports torch


@dataclass(frozen=True, kw_only=True)
class EncodedSplit:
    """The encoding of one split.

    Attributes:
        split: its name; None if the source has no splits.
        folder: of its shards.
        num_source: images in the source.
        num_images: encoded images.
        num_new: images of the source that were read during this call, by this process or others.
        broken: images that could not be read.
        classes: the names of the labels; None if there are none.
    """

    split: str | None
    folder: Path
    num_source: int
    num_images: int
    num_new: int
    broken: list[BrokenImage]
    classes: list[str] | None


@dataclass(frozen=True, kw_only=True)
class EncodeResult:
    """What `encode` did.

    Attributes:
        splits: one per split; a single one if the source has no splits.
        seconds: it took.
    """

    splits: list[EncodedSplit]
    seconds: float

    @property
    def num_images(self) -> int:
        """Encoded images, in all splits."""
        return sum(one.num_images for one in self.splits)

    @property
    def broken(self) -> list[BrokenImage]:
        """Images that could not be read, in all splits."""
        return [broken for one in self.splits for broken in one.broken]

    @property
    def images_per_second(self) -> float:
        """Images read during this call, broken or not, per second."""
        return sum(one.num_new for one in self.splits) / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON types."""
        splits = [{**dataclasses.asdict(one), "folder": str(one.folder)} for one in self.splits]
        return {"splits": splits, "seconds": self.seconds, "images_per_second": self.images_per_second}


def encode(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    processor: ImageGPTImageProcessor,
    *,
    split: str | None = None,
    num_workers: int | None = None,
    executor: ExecutorName = "local",
    max_broken: float = MAX_BROKEN,
    shard_size: int | None = None,
    file_format: ShardFormat = "arrow",
    ranks: Ranks | None = None,
    on_progress: Progress | None = None,
) -> EncodeResult:
    """Write the images of a source as ids into a folder.

    `EncodedDataset` and `datasets.load_from_disk` read the folder (`load_dataset` for parquet). The columns are `ids`,
    uint16 (T,) in raster order; `label`, a ClassLabel if the classes have names, else int64, -1 for an image without
    one; `index`, the image's number in the source; and `pixel_hash`, uint64. A source with splits becomes a folder of
    such folders. Broken images are skipped and listed in `encoding.json`; damaged shards are made again.

    Args:
        source: see `open_images`.
        out: made if it does not exist; may contain such an encoding, and nothing else.
        processor: with a palette.
        split: None encodes all of them.
        num_workers: processes; 1 is this one. None is one per core, or 1 if there is little to do.
        executor: where they run: "local" on this machine, "ray" on a Ray cluster.
        max_broken: the fraction of images of a split, 0 to 1, that may be broken.
        shard_size: images of the source per file; None chooses it by bytes.
        file_format: of the shards.
        ranks: if this process is one of several that share the work.
        on_progress: called with the number of images read, by all processes and calls, and their total.
    Returns: what was done.
    Raises: ValueError or OSError, in one sentence, for values outside these ranges, a source or folder that cannot be
        used, a source that has changed, other settings, or too many broken images; finished shards remain.
    """
    started = time.monotonic()
    run = _Run(
        num_workers=ranges.WORKERS.check_optional("num_workers", num_workers),
        executor=executor,
        ranks=ranks or Ranks(),
        on_progress=on_progress,
    )
    choose = _settings_chooser(processor, shard_size, file_format)
    max_broken = ranges.BROKEN_FRACTION.check("max_broken", max_broken)
    names = [] if split is not None else list_splits(source)
    sources = [open_images(source, split=name) for name in names or [split]]
    splits = run.encode(sources, names, Path(out), processor, max_broken, choose)
    return EncodeResult(splits=splits, seconds=time.monotonic() - started)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Who encodes: see the arguments of `encode`."""

    num_workers: int | None
    executor: ExecutorName
    ranks: Ranks
    on_progress: Progress | None

    def encode(
        self,
        sources: Sequence[ImageSource],
        names: Sequence[str],
        folder: Path,
        processor: ImageGPTImageProcessor,
        max_broken: float,
        choose: ChooseSettings,
    ) -> list[EncodedSplit]:
        """Encode sources into the folders of these names, or a single one into the folder itself."""
        check_folder(folder, names)
        splits = [
            SplitFolder(source=source, folder=place, processor=processor, max_broken=max_broken)
            for source, place in zip(sources, [folder / name for name in names] or [folder], strict=True)
        ]
        with new_or_existing(folder):
            executor = choose_executor(self.executor, self._plan_workers(splits, choose))
            with contextlib.ExitStack() as stack:
                jobs = [stack.enter_context(one.joined(choose)) for one in splits]
                num_new = self._make_shards(jobs, executor)
            if names:
                describe_splits(folder, names, processor)
        return [_result(job, new) for job, new in zip(jobs, num_new, strict=True)]

    def _plan_workers(self, splits: Sequence[SplitFolder], choose: ChooseSettings) -> int:
        """Choose the number of processes, and check that their work fits into memory and on the disk."""
        settings, num_images, num_shards = [choose(one.source, "") for one in splits], 0, 0
        for one, split in zip(settings, splits, strict=True):
            missing = set(range(one.num_shards)) - Markers(split.folder, EncodeJob.doing).finished()
            num_images += sum(len(one.items(shard)) for shard in missing)
            num_shards += len(missing)
        workers = max(1, min(self._choose_workers(num_images), num_shards))
        check_room(settings, num_images, workers, splits[0].folder)
        return workers

    def _choose_workers(self, num_images: int) -> int:
        if self.num_workers is not None:
            return self.num_workers
        if num_images < _WORTH_PROCESSES or self.ranks.world_size > 1:
            return 1
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def _make_shards(self, jobs: Sequence[EncodeJob], executor: Executor) -> list[int]:
        """Make the missing shards; return the number of images that were missing, per job."""
        for job in jobs:
            unmark_damaged(job, self.ranks)
        monitor = Monitor(jobs, self.on_progress)
        num_missing = [job.plan.num_items - job.plan.count(job.shards) for job in jobs]
        if any(num_missing):
            with contextlib.nullcontext() if isinstance(executor, InProcess) else listed(jobs):
                executor.run(jobs, self.ranks, monitor)
        monitor.poll(force=True)
        return num_missing


def _result(job: EncodeJob, num_new: int) -> EncodedSplit:
    return EncodedSplit(
        split=job.source.split,
        folder=job.folder,
        num_source=job.settings.num_source,
        num_images=sum(shard.num_images for shard in job.shards.values()),
        num_new=num_new,
        broken=job.broken,
        classes=job.settings.classes,
    )


def _settings_chooser(
    processor: ImageGPTImageProcessor, shard_size: int | None, file_format: ShardFormat
) -> ChooseSettings:
    """Return the function that gives the settings for a source and its fingerprint; see `encode`."""
    _check_pyarrow()
    palette, options = checked_palette(processor), processor.to_dict()
    given_size = ranges.SHARD_IMAGES.check_optional("shard_size", shard_size)
    if file_format not in ("arrow", "parquet"):
        raise ValueError(f"file_format is {file_format!r}: choose arrow or parquet")

    def choose(source: ImageSource, fingerprint: str) -> EncodingSettings:
        size = options["size"]
        return EncodingSettings(
            source=absolute_name(source),
            split=source.split,
            source_fingerprint=fingerprint,
            num_source=len(source),
            classes=source.classes,
            palette=palette.fingerprint,
            num_colors=palette.num_colors,
            processor={key: options[key] for key in ("size", "resize_mode", "resample", "background")},
            shard_size=given_size or default_shard_size(len(source), size["height"] * size["width"]),
            file_format=file_format,
            version=importlib.metadata.version("imagegpt"),
        )

    return choose


def _check_pyarrow() -> None:
    """Raise ValueError if shards cannot be written here."""
    try:
        import pyarrow  # noqa: F401 - whether it is installed
    except ImportError as error:
        raise missing_library("encoding images") from error
