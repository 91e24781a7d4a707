"""Sampling many images into a folder: `sample_many`."""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from jaxtyping import Int64

import imagegpt
from imagegpt.common import ranges
from imagegpt.jobs.engine import Executor, Progress, run
from imagegpt.jobs.executors import InProcess
from imagegpt.jobs.image_formats import ImageFormat, check_format
from imagegpt.jobs.image_job import ImageJob, agree, check_folder, model_fingerprint
from imagegpt.jobs.job_folder import new_or_existing
from imagegpt.jobs.markers import joined
from imagegpt.jobs.plan import choose_shard_size
from imagegpt.jobs.ranks import Ranks
from imagegpt.jobs.sampling_settings import PromptSettings, SamplingSettings
from imagegpt.pipeline.pipeline import ImageGPTPipeline
from imagegpt.sampling import SamplingRules, image_seed

# The default batch where it determines the last bits of an image, so that it may not depend on free memory: `digits` on
# two cores samples 80, 130 and 120 images/s in batches of 64, 128 and 256.
_CACHE_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}
_LARGEST_BATCH = 128
_PIXEL_BYTES = 3  # in a PNG, at most
_LARGEST_SHARD = 256  # images: a killed process loses at most so many


@dataclass(frozen=True, kw_only=True)
class SampleResult:
    """What a sampling job did.

    Attributes:
        folder: of the images.
        num_images: in the folder.
        num_new: images that did not exist before, sampled by this process or others.
        seconds: it took.
    """

    folder: Path
    num_images: int
    num_new: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON types."""
        return {**dataclasses.asdict(self), "folder": str(self.folder)}


class SamplingOptions(TypedDict, total=False):
    """Keyword arguments of all jobs that sample images.

    Attributes:
        seed: 0 to 2^64 - 1; default 0.
        rules: of sampling; None is the model's own distribution.
        file_format: "png" (default), or a shard format: "npz", "arrow" or "parquet", see `image_formats`.
        shard_size: images per shard; None keeps that of the folder, or chooses it by bytes.
        batch_size: images at a time; None chooses by memory.
        name: of the model, in the metadata; None is the beginning of its fingerprint.
        force: replace images with other settings.
        ranks: if this process is one of several that share the work.
        executor: runs the job; None is this process.
        load: loads the model in other processes; needed for other executors.
        on_progress: called with the number of images done, by all processes, and their total; the former has a fraction
            while a batch is sampled.
    """

    seed: int
    rules: SamplingRules | None
    file_format: ImageFormat
    shard_size: int | None
    batch_size: int | None
    name: str | None
    force: bool
    ranks: Ranks | None
    executor: Executor | None
    load: Callable[[], ImageGPTPipeline] | None
    on_progress: Progress | None


@dataclass(frozen=True, kw_only=True)
class SampleJob(ImageJob):
    """Images sampled from nothing."""

    def generate(self, indices: Sequence[int], on_progress: Callable[[int], None]) -> Int64[np.ndarray, "n t"]:
        """See `ImageJob`."""
        seeds = [image_seed(self.settings.seed, index) for index in indices]
        ids = self.pipe.sampler.generate(seeds=seeds, rules=self.settings.rules, on_progress=on_progress)
        return ids.cpu().numpy()


def sample_many(
    pipe: ImageGPTPipeline, num: int, folder: str | os.PathLike[str], **options: Unpack[SamplingOptions]
) -> SampleResult:
    """Sample images into a folder, except those that exist; `image_job` describes the folder.

    The same call resumes a killed one, and several calls at the same time share the work; the files are the same,
    byte for byte on the same kind of machine. Damaged files cause a warning and are made again.

    Args:
        pipe: samples; image k is `pipe.sample`'s image k for this seed.
        num: images in total, 1 to 10^8; may be more than the folder was made for, not fewer.
        folder: made if it does not exist; may contain such a job, and nothing else.
        **options: see `SamplingOptions`.
    Returns: what was done.
    Raises: ValueError or OSError, in one sentence, for values outside these ranges, a folder that contains anything
        else, or one with other settings; BusyError if others are at work in a folder that is to grow or be replaced.
    """
    return run_image_job(SampleJob, pipe, choose_settings(pipe, num, **options), Path(folder), **options)


def run_image_job(
    make_job: Callable[..., ImageJob],
    pipe: ImageGPTPipeline,
    settings: SamplingSettings,
    folder: Path,
    **options: Unpack[SamplingOptions],
) -> SampleResult:
    """Do a sampling job.

    Args:
        make_job: makes it, from the attributes of `ImageJob`.
        pipe: samples, in this process.
        settings: as asked for.
        folder: of the job.
        **options: see `SamplingOptions`.
    """
    started, ranks = time.monotonic(), options.get("ranks") or Ranks()
    executor, force = options.get("executor") or InProcess(), options.get("force", False)
    check_folder(folder)

    def settle(check_alone: Callable[[], None]) -> SamplingSettings:
        is_given = options.get("shard_size") is not None
        return agree(folder, settings, shard_is_given=is_given, force=force, check_alone=check_alone)

    with new_or_existing(folder), joined(folder, ImageJob.doing, settle) as agreed:
        load, batch_size = options.get("load") or (lambda: pipe), options.get("batch_size")
        job = make_job(folder=folder, settings=agreed, load=load, batch_size=batch_size)
        (num_new,) = run([job], executor, ranks, options.get("on_progress"))
    return SampleResult(folder=folder, num_images=agreed.num, num_new=num_new, seconds=time.monotonic() - started)


def choose_settings(
    pipe: ImageGPTPipeline, num: int, *, prompts: PromptSettings | None = None, **options: Unpack[SamplingOptions]
) -> SamplingSettings:
    """The settings of a job in an empty folder; see `sample_many`."""
    name, rules = options.get("name"), options.get("rules")
    file_format = options.get("file_format", "png")
    check_format(file_format)
    seed, num = ranges.SEED.check("seed", options.get("seed", 0)), ranges.NUM_IMAGES.check("num", num)
    batch_size = ranges.BATCH_SIZE.check_optional("batch_size", options.get("batch_size"))
    shard_size = ranges.SHARD_IMAGES.check_optional("shard_size", options.get("shard_size"))
    plan, fingerprint = pipe.sampler.plan, model_fingerprint(pipe)
    if shard_size is None:
        shard_size = choose_shard_size(_PIXEL_BYTES * pipe.model.config.n_positions, _LARGEST_SHARD)
    return SamplingSettings(
        model=f"ImageGPT {fingerprint[:12]}" if name is None else name,
        fingerprint=fingerprint,
        precision=plan.precision,
        seed=seed,
        rules=SamplingRules() if rules is None else rules,
        file_format=file_format,
        shard_size=shard_size,
        batch_size=None if plan.backend == "cpp" else batch_size or default_batch_size(pipe),
        backend=plan.backend,
        num=num,
        version=imagegpt.__version__,
        prompts=prompts,
    )


def default_batch_size(pipe: ImageGPTPipeline) -> int:
    """Images at a time by the size of their keys and values: the same on all machines with the same kind of device."""
    cache_bytes = _CACHE_BYTES.get(pipe.model.device.type, _CACHE_BYTES["cuda"])
    return max(1, min(_LARGEST_BATCH, cache_bytes // pipe.sampler.plan.bytes_per_image))
