"""Drawing the images of a run that are not there yet, block by block.

Axes: n images of a block, T pixels in raster order.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64

import imagegpt
from imagegpt.common import ranges
from imagegpt.config import ImageGPTConfig
from imagegpt.files.atomic import atomic_write
from imagegpt.files.locks import remove_if_unused
from imagegpt.jobs import sample_folder as places
from imagegpt.jobs.image_formats import check_format, count_images, damage_of, encoder, missing_files
from imagegpt.jobs.ranks import Workers
from imagegpt.jobs.sample_folder import RunSettings
from imagegpt.pipeline.pipeline import ImageGPTPipeline
from imagegpt.sampling import SamplingRules, image_seed

Progress = Callable[[float, int], None]

# The default size of a block. Unlike the pipeline's it may not depend on the memory that happens to be free: it is part
# of what makes a run repeatable. `digits` on two cores draws 80, 130 and 120 images/s in blocks of 64, 128 and 256.
_CACHE_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}
_LARGEST_BLOCK = 128


def sample_many(
    pipe: ImageGPTPipeline,
    num: int,
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    rules: SamplingRules | None = None,
    file_format: str = "png",
    batch_size: int | None = None,
    name: str | None = None,
    force: bool = False,
    workers: Workers | None = None,
    progress: Progress | None = None,
) -> int:
    """Draw images into a folder, those that are not there yet; see the top of the package for what it then holds.

    The same call goes on after a kill, and the files are those of an undisturbed run, byte for byte on the same
    kind of machine. Files that are damaged are named in a warning and drawn again. Memory holds one block.

    Args:
        pipe: draws them; image k is `pipe.sample`'s image k for this seed.
        num: images in all, 1 to 10^8; may be more than those of the run that is there, not fewer.
        folder: made if it is not there; may hold such a run, and nothing else.
        seed: 0 to 2^64 - 1.
        rules: how pixels are drawn; None is the model's own distribution.
        file_format: "png", "npz" or "arrow", see `formats.encoder`.
        batch_size: images a block; None takes that of the run that is there, or chooses by the size of the model.
        name: what to call the model in the metadata; None takes the beginning of its fingerprint.
        force: a run with other settings that is there is replaced.
        workers: which of several processes this is; None is the only one. Each needs the same arguments.
        progress: called on process 0 with the images that are done, all processes together, and `num`. The former is no
            whole number while a block is being drawn.
    Returns: how many images this process has drawn. On process 0 all images are there then.
    Raises: ValueError or OSError, in one sentence, for values outside these ranges, a folder with anything else in it,
        or a run with other settings; TimeoutError if another process does not do its part.
    """
    workers = Workers() if workers is None else workers
    rules = SamplingRules() if rules is None else rules
    check_format(file_format)
    wanted = _wanted(pipe, num, seed, rules, file_format, batch_size, name)
    folder, block_is_given = Path(folder), batch_size is not None
    with contextlib.ExitStack() as stack:
        if workers.rank == 0:
            settings = stack.enter_context(_prepared(folder, wanted, block_is_given, force))
        else:
            settings = _agreed(folder, wanted, block_is_given, force, workers.wait_s)
            stack.enter_context(places.locked_share(folder, workers))
            if places.read_settings(folder) != settings:
                raise ValueError(f"the run in {folder} was replaced by another one: give the same command again")
        places.remove_temporaries(folder, settings, workers)
        return _Run(pipe, folder, settings, workers, progress).draw()


def _wanted(
    pipe: ImageGPTPipeline,
    num: int,
    seed: int,
    rules: SamplingRules,
    file_format: str,
    batch_size: int | None,
    name: str | None,
) -> RunSettings:
    """The settings that the arguments stand for, if there is no run to go on with."""
    seed, num = ranges.SEED.check("seed", seed), ranges.NUM_IMAGES.check("num", num)
    batch_size = ranges.BATCH.check_if_given("batch_size", batch_size)
    fingerprint = model_fingerprint(pipe)
    block = default_block(pipe) if batch_size is None else batch_size
    return RunSettings(
        model=f"ImageGPT {fingerprint[:12]}" if name is None else name,
        fingerprint=fingerprint,
        precision=pipe.sampler.plan.precision,
        seed=seed,
        rules=rules,
        file_format=file_format,
        batch_size=block,
        backend=pipe.sampler.plan.backend,
        num=num,
        version=imagegpt.__version__,
    )


def model_fingerprint(pipe: ImageGPTPipeline) -> str:
    """A hash of all that decides what a pipeline draws and how it looks: weights, configuration, palette, size."""
    config = {key: getattr(pipe.model.config, key) for key in ImageGPTConfig.__annotations__}  # not transformers' own
    processor = {key: value for key, value in pipe.processor.to_dict().items() if key in ("clusters", "size")}
    digest = hashlib.sha256(json.dumps([config, processor], sort_keys=True, default=str).encode())
    for name, weight in sorted(pipe.model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(memoryview(weight.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy()))
    return digest.hexdigest()


def default_block(pipe: ImageGPTPipeline) -> int:
    """Images a block, by the size of their keys and values: the same on all machines with the same kind of device."""
    room = _CACHE_BYTES.get(pipe.model.device.type, _CACHE_BYTES["cuda"])
    return max(1, min(_LARGEST_BLOCK, room // pipe.sampler.plan.bytes_per_image))


@contextlib.contextmanager
def _prepared(folder: Path, settings: RunSettings, block_is_given: bool, force: bool) -> Iterator[RunSettings]:
    """The folder made ready by process 0, and kept from other runs; the settings to draw with."""
    places.check_folder(folder)
    is_new = not folder.exists()
    if is_new:
        folder.mkdir()
    with places.locked_share(folder, Workers()):
        there = places.check_folder(folder)  # once more: nobody else may change it now
        try:
            if there is not None:
                settings, differences = _reconciled(there, settings, block_is_given)
                if differences and not force:
                    raise ValueError(_refusal(folder, differences))
                if differences:
                    places.check_all_ended(folder)
                    places.remove_images(folder, there)
            if settings != there:
                places.write_settings(folder, settings)
        except BaseException:
            if is_new:
                remove_if_unused(folder)
            raise
        yield settings


def _agreed(folder: Path, settings: RunSettings, block_is_given: bool, force: bool, wait_s: float) -> RunSettings:
    """The settings to draw with, as process 0 has written them.

    Raises: ValueError if they can never be those of this process; TimeoutError if they do not come.
    """

    def accept(there: RunSettings) -> bool:
        reconciled, differences = _reconciled(there, settings, block_is_given)
        if differences and not force:
            raise ValueError(_refusal(folder, differences))
        return not differences and reconciled == there  # else process 0 is going to let it grow, or to replace it

    return places.wait_for_settings(folder, accept, wait_s)


def _reconciled(there: RunSettings, now: RunSettings, block_is_given: bool) -> tuple[RunSettings, list[str]]:
    """The settings to draw with if the run there gives way or goes on, and what stands against going on.

    The same model under another name is the same model, and keeps the name that it has in the files.
    """
    going_on = dataclasses.replace(
        now,
        model=there.model if there.fingerprint == now.fingerprint else now.model,
        batch_size=now.batch_size if block_is_given else there.batch_size,
    )
    differences = places.differences(there, going_on)
    return (now if differences else going_on), differences


def _refusal(folder: Path, differences: list[str]) -> str:
    return (
        f"the run in {folder} was made with another {' and another '.join(differences)}: "
        "give the same, choose another folder, or replace it with --force"
    )


@dataclass
class _Run:
    """The share of one process in a run."""

    pipe: ImageGPTPipeline
    folder: Path
    settings: RunSettings
    workers: Workers
    progress: Progress | None

    def __post_init__(self) -> None:
        self._tells = self.progress is not None and self.workers.rank == 0
        self._encode = encoder(self.pipe.processor, self.settings)
        self._done = 0  # images that are there, as far as this process knows
        self._recount_at = 0.0
        self._longest_block_s = 0.0

    def draw(self) -> int:
        """Draw what is missing; how many images that were."""
        num_drawn = 0
        if self.workers.rank == 0 and (self._tells or self.workers.world_size > 1):
            self._recount()
            self._tell()
        for number in filter(self.workers.owns, range(self.settings.num_blocks)):
            files = missing_files(self.folder, self.settings, number)
            if not files:
                continue
            for path, damage in ((path, damage_of(path)) for path, _ in files):
                if damage is not None:
                    warnings.warn(f"{path} is damaged ({damage}) and is drawn again", stacklevel=2)
            start = time.monotonic()
            num_missing = sum(len(indices) for _, indices in files)
            self._write(files, self._draw_block(number, num_missing), number * self.settings.batch_size)
            self._longest_block_s = max(self._longest_block_s, time.monotonic() - start)
            num_drawn += num_missing
            self._done += num_missing
            self._tell()
        if self.workers.rank == 0 and self.workers.world_size > 1:
            self._wait_for_others()
        return num_drawn

    def _draw_block(self, number: int, num_missing: int) -> Int64[np.ndarray, "n t"]:
        """All ids of a block, also of images that are there or not asked for: its composition never changes."""
        first, size = number * self.settings.batch_size, self.settings.batch_size
        pixels_of_block = size * self.pipe.model.config.n_positions

        def tell(drawn: int) -> None:
            self._tell(num_missing * drawn / pixels_of_block)

        seeds = [image_seed(self.settings.seed, index) for index in range(first, first + size)]
        told = tell if self._tells else None
        return self.pipe.sampler.generate(seeds=seeds, rules=self.settings.rules, on_progress=told).cpu().numpy()

    def _write(self, files: list[tuple[Path, range]], ids: Int64[np.ndarray, "n t"], first: int) -> None:
        for path, indices in files:
            path.parent.mkdir(exist_ok=True)
            content = self._encode(indices, ids[indices.start - first : indices.stop - first])
            # A PNG that a power cut empties is drawn again; waiting for the disk would take as long as drawing it.
            atomic_write(path, content, "the images", durable=self.settings.file_format != "png")

    def _tell(self, more: float = 0) -> None:
        if self.progress is None or self.workers.rank:
            return
        if self.workers.world_size > 1 and time.monotonic() >= self._recount_at:
            self._recount()
        self.progress(min(self._done + more, self.settings.num), self.settings.num)

    def _others_have_to_draw(self) -> bool:
        """Whether files that are there are damaged, in the share of another process."""
        others = (number for number in range(self.settings.num_blocks) if not self.workers.owns(number))
        return any(missing_files(self.folder, self.settings, number) for number in others)

    def _recount(self) -> None:
        """Count what is there, the other processes' images too; not more often than it is worth."""
        start = time.monotonic()
        self._done, _ = count_images(self.folder)
        self._recount_at = time.monotonic() + max(5.0, 20 * (time.monotonic() - start))

    def _wait_for_others(self) -> None:
        """Wait, on process 0, until the other processes have drawn their share.

        Raises: TimeoutError if no image comes for as long as `Workers` says, or four times what a block took here.
        """
        limit = max(self.workers.wait_s, 4 * self._longest_block_s)
        end, before = time.monotonic() + limit, -1
        while self._done < self.settings.num or self._others_have_to_draw():
            if self._done > before:
                end, before = time.monotonic() + limit, self._done
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{self.settings.num - self._done} of {self.settings.num} images in {self.folder} are missing and "
                    f"none came for {limit:.0f} s: see what became of the other processes, then give the same command"
                )
            time.sleep(0.2)
            self._recount()
            self._tell()
