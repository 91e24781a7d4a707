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
from imagegpt.common.devices import num_cores
from imagegpt.data.broken_images import MAX_BROKEN, BrokenImage
from imagegpt.data.encoding_shards import EncodingSettings, ShardFormat
from imagegpt.data.identity import processor_settings
from imagegpt.data.palettes import checked_palette
from imagegpt.data.sources.base import ImageSource, missing_library
from imagegpt.data.sources.registry import list_splits, open_images
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.jobs.encode_job import (
    EncodeJob,
    check_folder,
    check_room,
    default_shard_size,
    describe_splits,
    join_encoding,
    listed,
)
from imagegpt.jobs.engine import Progress, run
from imagegpt.jobs.executors import ExecutorName, InProcess, choose_executor
from imagegpt.jobs.job_folder import new_or_existing
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
    started, folder = time.monotonic(), Path(out)
    num_workers = ranges.WORKERS.check_optional("num_workers", num_workers)
    jobs = _open_jobs(source, split, folder, processor, max_broken, shard_size, file_format)
    splits = _encode_all(jobs, folder, num_workers, executor, ranks or Ranks(), on_progress)
    return EncodeResult(splits=splits, seconds=time.monotonic() - started)


def _open_jobs(
    source: str | os.PathLike[str],
    split: str | None,
    folder: Path,
    processor: ImageGPTImageProcessor,
    max_broken: float,
    shard_size: int | None,
    file_format: ShardFormat,
) -> list[EncodeJob]:
    """Check the arguments of `encode`; return a job for each split, in a folder of its own if there are several."""
    max_broken = ranges.BROKEN_FRACTION.check("max_broken", max_broken)
    shard_size = ranges.SHARD_IMAGES.check_optional("shard_size", shard_size)
    if file_format not in ("arrow", "parquet"):
        raise ValueError(f"file_format is {file_format!r}: choose arrow or parquet")
    _check_pyarrow()
    names = [] if split is not None else list_splits(source)
    jobs = [
        EncodeJob(
            folder=folder / str(images.split) if names else folder,
            source=images,
            processor=processor,
            settings=_settings(images, processor, shard_size, file_format),
            max_broken=max_broken,
        )
        for images in [open_images(source, split=name) for name in names or [split]]
    ]
    check_folder(folder, names)
    return jobs


def _encode_all(
    jobs: Sequence[EncodeJob],
    folder: Path,
    num_workers: int | None,
    executor_name: ExecutorName,
    ranks: Ranks,
    on_progress: Progress | None,
) -> list[EncodedSplit]:
    with new_or_existing(folder):
        executor = choose_executor(executor_name, _plan_workers(jobs, num_workers, ranks))
        with contextlib.ExitStack() as stack:
            jobs = [stack.enter_context(join_encoding(job)) for job in jobs]
            if not isinstance(executor, InProcess):
                stack.enter_context(listed(jobs))
            num_new = run(jobs, executor, ranks, on_progress)
        if jobs[0].folder != folder:
            describe_splits(folder, [job.folder.name for job in jobs], jobs[0].processor)
    return [
        EncodedSplit(
            split=job.source.split,
            folder=job.folder,
            num_source=job.settings.num_source,
            num_images=sum(shard.num_images for shard in job.shards.values()),
            num_new=new,
            broken=job.broken,
            classes=job.settings.classes,
        )
        for job, new in zip(jobs, num_new, strict=True)
    ]


def _plan_workers(jobs: Sequence[EncodeJob], num_workers: int | None, ranks: Ranks) -> int:
    """Choose the number of processes, and check that their work fits into memory and on the disk."""
    num_images = num_shards = 0
    for job in jobs:
        missing = set(range(job.plan.num_shards)) - Markers(job.folder, job.doing).finished()
        num_images += job.plan.count(missing)
        num_shards += len(missing)
    if num_workers is None:
        num_workers = 1 if num_images < _WORTH_PROCESSES or ranks.world_size > 1 else num_cores()
    num_workers = max(1, min(num_workers, num_shards))
    check_room([job.settings for job in jobs], num_images, num_workers, jobs[0].folder)
    return num_workers


def _settings(
    source: ImageSource, processor: ImageGPTImageProcessor, shard_size: int | None, file_format: ShardFormat
) -> EncodingSettings:
    """The settings of an encoding without the fingerprint of its source, which takes long."""
    palette, size = checked_palette(processor), processor.size
    return EncodingSettings(
        source=source.location,
        split=source.split,
        source_fingerprint="",
        num_source=len(source),
        classes=source.classes,
        palette=palette.fingerprint,
        num_colors=palette.num_colors,
        processor=processor_settings(processor),
        shard_size=shard_size or default_shard_size(len(source), size["height"] * size["width"]),
        file_format=file_format,
        version=importlib.metadata.version("imagegpt"),
    )


def _check_pyarrow() -> None:
    """Raise ValueError if shards cannot be written here."""
    try:
        import pyarrow  # noqa: F401 - whether it is installed
    except ImportError as error:
        raise missing_library("encoding images") from error
