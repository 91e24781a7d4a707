"""Jobs whose items are images to be sampled: resuming, making and checking their shards.

    folder/run.json              the settings, written first: `SamplingSettings`
    folder/0003/00031234.png     one PNG per image, 10,000 per folder; or
    folder/00031232.npz          one file per shard, named after its first image (.arrow and .parquet alike)

An image depends on the model, the seed, the rules and its index alone, so it does not matter with which others it is
sampled, except where the settings record a batch size.

Axes: n images, T pixels in raster order.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int64

from imagegpt.config import ImageGPTConfig
from imagegpt.files.atomic import atomic_write, target_name
from imagegpt.jobs.image_formats import Encode, damage_of, npz_encoder, png_encoder, table_encoder
from imagegpt.jobs.job_folder import check_content, check_place
from imagegpt.jobs.markers import Markers, remove_temporaries
from imagegpt.jobs.plan import Job, Report, ShardPlan
from imagegpt.jobs.sampling_settings import MANIFEST, SamplingSettings, differences, folders_of, read_run, write_run
from imagegpt.pipeline.pipeline import ImageGPTPipeline


@dataclass(frozen=True, kw_only=True)
class ImageJob(Job):
    """Images sampled into a folder.

    Attributes:
        folder: of the files.
        settings: of the job.
        load: loads the model, in each process.
        batch_size: images at a time; None chooses by memory.
        damaged: files found damaged by this process.
    """

    doing: ClassVar[str] = "samples images into"

    folder: Path
    settings: SamplingSettings
    load: Callable[[], ImageGPTPipeline]
    batch_size: int | None
    damaged: set[Path] = field(default_factory=set, repr=False)

    @property
    def plan(self) -> ShardPlan:
        """See `Job`."""
        return ShardPlan(num_items=self.settings.num, shard_size=self.settings.shard_size)

    @cached_property
    def pipe(self) -> ImageGPTPipeline:
        """The model with its processor, loaded when it is first needed."""
        return self.load()

    @property
    def needs_gpu(self) -> bool:
        """See `Job`."""
        return self.pipe.model.device.type == "cuda"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("pipe", "_encode")}

    @abstractmethod
    def generate(self, indices: Sequence[int], on_progress: Callable[[int], None]) -> Int64[np.ndarray, "n t"]:
        """Sample the images of these indices; `on_progress` is called with the number of pixels sampled."""

    def facts(self, index: int) -> dict[str, Any]:
        """The metadata of an image."""
        return {"model": self.settings.model, "seed": self.settings.seed, "rules": self.settings.rules, "index": index}

    def make(self, shard: int, report: Report) -> str:
        """See `Job`. Sample the images that do not exist, batch by batch, and write each file when it is complete."""
        items = self.plan.items(shard)
        self._clear(items)
        files = {self.folder / path: part for path, part in self.settings.files(items)}
        waiting = {path: part for path, part in files.items() if _damage(path, part)}
        wanted = [index for part in waiting.values() for index in part]
        ids: dict[int, np.ndarray] = {}
        num_done = len(items) - len(wanted)
        report(num_done)
        for batch in self._batches(items, wanted):
            num_new, num_pixels = len(set(wanted).intersection(batch)), len(batch) * self.pipe.model.config.n_positions

            def on_progress(pixels: int, done: int = num_done, share: float = num_new / num_pixels) -> None:
                report(done + share * pixels)

            ids |= dict(zip(batch, self.generate(batch, on_progress), strict=True))
            for path in [path for path, part in waiting.items() if ids.keys() >= set(part)]:
                self._write(path, waiting.pop(path), ids)
            num_done += num_new
            report(num_done)
        return ""

    def check(self, shard: int, record: str) -> list[str]:
        """See `Job`."""
        files = {self.folder / path: part for path, part in self.settings.files(self.plan.items(shard))}
        damage = {path: clause for path, part in files.items() if (clause := _damage(path, part))}
        self.damaged.update(damage)
        return list(damage.values())

    def check_settings(self) -> None:
        """See `Job`."""
        if read_run(self.folder) != self.settings:
            raise ValueError(f"the images in {self.folder} were replaced by others: give the same command again")

    def count_existing(self, shards: Collection[int]) -> int:
        """See `Job`. PNGs are counted by their names, except those that this process has found damaged."""
        if self.settings.file_format != "png":
            return 0
        items, names = [self.plan.items(shard) for shard in shards], set[str]()
        for subfolder in folders_of(self.settings, items):
            with contextlib.suppress(FileNotFoundError):
                names.update(f"{subfolder}/{name}" for name in os.listdir(self.folder / subfolder))  # noqa: PTH208
        paths = (path for one in items for path, _ in self.settings.files(one)) if names else ()
        return sum(path in names and self.folder / path not in self.damaged for path in paths)

    def _clear(self, items: range) -> None:
        """Make the subfolders of a shard, and remove what killed processes left half-written there."""
        names = {path.rpartition("/")[2] for path, _ in self.settings.files(items)}
        for subfolder in folders_of(self.settings, [items]):
            (self.folder / subfolder).mkdir(exist_ok=True)
            remove_temporaries(self.folder / subfolder, names.__contains__)

    def _batches(self, items: range, wanted: Sequence[int]) -> Iterator[Sequence[int]]:
        """The images of a shard that are sampled together.

        Where the batch size changes the last bits of an image, batches are the same whatever is missing, also beyond
        the last image, which may become another one when the job grows.
        """
        fixed = self.settings.batch_size
        if fixed is None:
            size = self.batch_size or self.pipe.sampler.plan.batch_size
            yield from (wanted[start : start + size] for start in range(0, len(wanted), size))
            return
        end = items.start + self.settings.shard_size
        for start in range(items.start, items.stop, fixed):
            batch = range(start, min(start + fixed, end))
            if any(index in batch for index in wanted):
                yield batch

    def _write(self, path: Path, indices: Sequence[int], ids: dict[int, np.ndarray]) -> None:
        content = self._encode(indices, np.stack([ids[index] for index in indices]))
        # A PNG that is lost in a power failure is made again; waiting for the disk takes as long as sampling it.
        atomic_write(path, content, "the images", durable=self.settings.file_format != "png")

    @cached_property
    def _encode(self) -> Encode:
        settings, processor = self.settings, self.pipe.processor
        if settings.file_format == "png":
            return png_encoder(processor, self.facts, settings.version)
        if settings.file_format == "npz":
            return npz_encoder(processor, settings.seed)
        return table_encoder(processor, settings.file_format, settings.version)


def agree(
    folder: Path, settings: SamplingSettings, *, shard_is_given: bool, force: bool, check_alone: Callable[[], None]
) -> SamplingSettings:
    """Compare settings with those in a locked folder, and write them if they are new.

    Args:
        folder: of the job.
        settings: as asked for.
        shard_is_given: whether the user has chosen the shard size; otherwise that of the folder stays.
        force: replace images with other settings.
        check_alone: raises BusyError if other processes are at work.
    Returns: the settings to use: the same model under another name keeps the name that its images have.
    Raises: ValueError if the settings differ; BusyError if images would be replaced while others are at work.
    """
    existing = check_folder(folder)
    remove_temporaries(folder, lambda name: name == MANIFEST)
    if existing is not None:
        resumed = _resumed(existing, settings, shard_is_given)
        found = differences(existing, resumed)
        if found and not force:
            raise ValueError(
                f"the images in {folder} were made with another {' and another '.join(found)}: "
                "give the same, choose another folder, or replace them with --force"
            )
        if found:
            check_alone()
            _remove_images(folder, existing)
        else:
            settings = resumed
            if settings.num > existing.num:  # the last shard grows
                check_alone()
                Markers(folder, ImageJob.doing).unmark([existing.num // existing.shard_size])
    if settings != existing:
        write_run(folder, settings)
    return settings


def check_folder(folder: Path) -> SamplingSettings | None:
    """Check that a job may use a folder: it does not exist, is empty, or contains such a job and nothing else.

    Returns: the settings in the folder, if any.
    Raises: ValueError or OSError, in one sentence, if not. Nothing is changed.
    """
    check_place(folder, "many images need a folder, or a name that ends in .png for one")
    existing = read_run(folder)

    def is_ours(path: str) -> bool:
        return path == MANIFEST or (existing is not None and existing.first_image(path) is not None)

    check_content(folder, list(_paths(folder)), is_ours, "a run of images")
    return existing


def model_fingerprint(pipe: ImageGPTPipeline) -> str:
    """A hash of everything that determines a pipeline's images: weights, configuration, palette, size."""
    config = {key: getattr(pipe.model.config, key) for key in ImageGPTConfig.__annotations__}  # not transformers' own
    processor = {key: value for key, value in pipe.processor.to_dict().items() if key in ("clusters", "size")}
    digest = hashlib.sha256(json.dumps([config, processor], sort_keys=True, default=str).encode())
    for name, weight in sorted(pipe.model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(memoryview(weight.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy()))
    return digest.hexdigest()


def _resumed(existing: SamplingSettings, now: SamplingSettings, shard_is_given: bool) -> SamplingSettings:
    shard_size = now.shard_size if shard_is_given else existing.shard_size
    model = existing.model if existing.fingerprint == now.fingerprint else now.model
    return dataclasses.replace(now, shard_size=shard_size, model=model)


def _remove_images(folder: Path, settings: SamplingSettings) -> None:
    """Remove the images of a job with their markers, and nothing else."""
    markers = Markers(folder, ImageJob.doing)
    markers.unmark(markers.finished())
    for path in list(_paths(folder)):
        head, slash, name = path.rpartition("/")
        if settings.first_image(f"{head}{slash}{target_name(name)}") is not None:
            (folder / path).unlink(missing_ok=True)
    for subfolder in folders_of(settings, [range(settings.num)]) - {""}:
        if (folder / subfolder).is_dir():
            (folder / subfolder).rmdir()


def _paths(folder: Path) -> Iterator[str]:
    """The paths of all files in a folder, relative to it, and in its subfolders with names of four digits."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if not (entry.is_dir(follow_symlinks=False) and re.fullmatch(r"\d{4}", entry.name)):
                yield entry.name
                continue
            with os.scandir(entry.path) as images:
                yield from (f"{entry.name}/{image.name}" for image in images)


def _damage(path: Path, part: range) -> str | None:
    """A clause about a missing or damaged file."""
    try:
        damage = damage_of(path, len(part))
    except FileNotFoundError:
        return f"{path} is missing"
    return None if damage is None else f"{path} is damaged ({damage})"
