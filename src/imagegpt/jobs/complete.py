"""Completing many images into a folder: `complete_many`.

Axes: n completions, P pixels of a prompt, T pixels of an image.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from jaxtyping import Int64

from imagegpt.common import ranges
from imagegpt.data.broken_images import BROKEN_FILE, MAX_BROKEN, BrokenImage, check_broken, write_list
from imagegpt.data.hashing import pixel_hashes, source_fingerprint
from imagegpt.data.sources.base import Example, ImageSource
from imagegpt.jobs.image_job import ImageJob
from imagegpt.jobs.sample import SampleResult, SamplingOptions, choose_settings, run_image_job
from imagegpt.jobs.sampling_settings import PromptSettings
from imagegpt.pipeline.pipeline import ImageGPTPipeline
from imagegpt.sampling import image_seed


class FileList(ImageSource):
    """Image files that were named one by one.

    Args:
        paths: of the files.
    """

    has_a_file_each = True

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self.name = f"{len(paths)} files"

    def __len__(self) -> int:
        return len(self._paths)

    def _read(self, index: int) -> Example:
        return Example(image=self._paths[index], label=None, name=str(self._paths[index]))

    def files(self) -> Iterable[Path]:
        """See `ImageSource`."""
        return self._paths


@dataclass(frozen=True, kw_only=True)
class CompleteResult(SampleResult):
    """What a completion job did.

    Attributes:
        num_source: images to complete, without the broken ones.
        broken: images that could not be read; they are listed in `broken-images.txt`, beside the folder.
    """

    num_source: int
    broken: list[BrokenImage]


@dataclass(frozen=True, kw_only=True)
class CompleteJob(ImageJob):
    """Completions of images: number j of the i-th readable image has the index i * num_completions + j.

    Attributes:
        source: of the images.
        broken: indices in the source of images that cannot be read.
    """

    source: ImageSource
    broken: tuple[int, ...]

    @cached_property
    def _readable(self) -> Int64[np.ndarray, " n"]:
        return np.setdiff1d(np.arange(len(self.source)), self.broken)

    @property
    def _prompts(self) -> PromptSettings:
        assert self.settings.prompts is not None, "set by `complete_many`"
        return self.settings.prompts

    def generate(self, indices: Sequence[int], on_progress: Callable[[int], None]) -> Int64[np.ndarray, "n t"]:
        """See `ImageJob`."""
        numbers, copies = np.divmod(np.asarray(indices), self._prompts.num_completions)
        kept = {number: self._read_prompt(number) for number in np.unique(numbers).tolist()}
        ids = self.pipe.sampler.generate(
            torch.stack([kept[number] for number in numbers.tolist()]),
            seeds=[image_seed(self.settings.seed, copy) for copy in copies.tolist()],
            rules=self.settings.rules,
            on_progress=on_progress,
        )
        return ids.cpu().numpy()

    def facts(self, index: int) -> dict[str, Any]:
        """See `ImageJob`."""
        number, copy = divmod(index, self._prompts.num_completions)
        image = self.source[int(self._readable[number])].name
        return {**super().facts(index), "image": image, "completion": copy, "keep": f"{self._prompts.num_kept} pixels"}

    def _read_prompt(self, number: int) -> torch.Tensor:
        return self.pipe.encode(self.source[int(self._readable[number])].image)[0, : self._prompts.num_kept]


def complete_many(
    pipe: ImageGPTPipeline,
    source: ImageSource,
    folder: str | os.PathLike[str],
    *,
    num_kept: int,
    num: int = 8,
    max_broken: float = MAX_BROKEN,
    **options: Unpack[SamplingOptions],
) -> CompleteResult:
    """Complete images into a folder, except those that exist; the folder is as that of `sample_many`.

    All images are read once before the first is completed, and broken ones are left out.

    Args:
        pipe: completes; completion j of an image is that of `pipe.complete` for this seed.
        source: of the images.
        folder: see `sample_many`.
        num_kept: pixels of each image to keep, in raster order; see `pipe.prompt_length`.
        num: completions per image.
        max_broken: the fraction of images that may be broken.
        **options: as for `sample_many`.
    Returns: what was done.
    Raises: as `sample_many`; ValueError if too many images are broken.
    """
    started, folder = time.monotonic(), Path(folder)
    max_broken = ranges.BROKEN_FRACTION.check("max_broken", max_broken)
    broken = pixel_hashes(source).broken
    check_broken(broken, len(source), f"images of {source.name}", max_broken)
    prompts = PromptSettings(
        source=source.location,
        source_fingerprint=source_fingerprint(source),
        num_images=len(source) - len(broken),
        num_kept=num_kept,
        num_completions=ranges.NUM_IMAGES.check("num", num),
    )
    settings = choose_settings(pipe, prompts.num_completions * prompts.num_images, prompts=prompts, **options)
    make_job = partial(CompleteJob, source=source, broken=tuple(one.index for one in broken))
    done = run_image_job(make_job, pipe, settings, folder, **options)
    if broken:
        write_list(folder.with_name(f"{folder.name}-{BROKEN_FILE}"), broken)
    fields = {**vars(done), "seconds": time.monotonic() - started}
    return CompleteResult(**fields, num_source=prompts.num_images, broken=broken)
