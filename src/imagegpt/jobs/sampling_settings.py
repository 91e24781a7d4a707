"""The settings of a sampling job, `run.json`, and the names of its files."""

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagegpt.common import ranges
from imagegpt.files.atomic import atomic_write
from imagegpt.files.schemas import validate
from imagegpt.files.versions import FORMAT_KEY, read_versioned_json
from imagegpt.jobs.image_formats import ImageFormat
from imagegpt.sampling import SamplingRules

RUN_FORMAT = 3  # of run.json; 2 had blocks of the batch's size and no markers

MANIFEST = "run.json"
_KIND = "images drawn by imagegpt"
_FILES_PER_FOLDER = 10**4


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """The images that a job completes.

    Args:
        source: its path or name.
        source_fingerprint: a hash of its content.
        num_images: in it.
        num_kept: pixels of each image that are kept, in raster order.
        num_completions: per image; image i has the indices i * num_completions and following.
    """

    source: str
    source_fingerprint: str
    num_images: int
    num_kept: int
    num_completions: int


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """Everything that determines the files of a sampling job; the content of `run.json`.

    Args:
        model: its name, for people and for the metadata of the images.
        fingerprint: a hash of its weights, configuration and palette, which identifies the model.
        precision: of the weights, "float32" for example.
        seed: of the job; sample k has `image_seed(seed, k)`.
        rules: of sampling.
        file_format: of the images.
        shard_size: images per shard.
        batch_size: images per batch where the last bits of an image depend on it (the backends torch and cuda); None
            where they do not.
        backend: computes the logits; others may round differently.
        num: images in total; the only setting that may grow.
        version: of this package.
        prompts: the images to complete; None samples from nothing.
    """

    model: str
    fingerprint: str
    precision: str
    seed: int
    rules: SamplingRules
    file_format: ImageFormat
    shard_size: int
    batch_size: int | None
    backend: str
    num: int
    version: str
    prompts: PromptSettings | None = None

    def __post_init__(self) -> None:
        ranges.SEED.check("seed", self.seed)
        ranges.SHARD_IMAGES.check("shard_size", self.shard_size)
        ranges.BATCH_SIZE.check_optional("batch_size", self.batch_size)
        ranges.NUM_IMAGES.check("num", self.num)

    def files(self, items: range) -> list[tuple[str, range]]:
        """The files of a shard, as paths within the folder, and the images in each."""
        if self.file_format == "png":
            return [(self._path(index), range(index, index + 1)) for index in items]
        return [(self._path(items.start), items)]

    def first_image(self, path: str) -> int | None:
        """The first image in the file of this path; None if the job has no such file."""
        digits = re.search(r"(\d{8})\.[a-z]+\Z", path)
        index = int(digits[1]) if digits else -1
        step = 1 if self.file_format == "png" else self.shard_size
        return index if 0 <= index < self.num and index % step == 0 and self._path(index) == path else None

    def _path(self, index: int) -> str:
        name = f"{index:08d}.{self.file_format}"
        return f"{index // _FILES_PER_FOLDER:04d}/{name}" if self.file_format == "png" else name


def run_json(settings: SamplingSettings) -> str:
    """The content of `run.json`."""
    return json.dumps({"kind": _KIND, FORMAT_KEY: RUN_FORMAT, **dataclasses.asdict(settings)}, indent=2) + "\n"


def write_run(folder: Path, settings: SamplingSettings) -> None:
    """Write `run.json`."""
    atomic_write(folder / MANIFEST, run_json(settings).encode(), "the settings of the job")


def read_run(folder: Path) -> SamplingSettings | None:
    """Read a folder's `run.json`; None if there is none.

    Raises: ValueError if it is damaged, not ours, or of another version.
    """
    path, remedy = folder / MANIFEST, "choose another folder"
    damaged = f"{path} was not written by imagegpt or is damaged"
    try:
        fields = read_versioned_json(path, dict[str, Any], RUN_FORMAT, kind=_KIND, remedy=remedy)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        settings = validate(fields, SamplingSettings, damaged)
    except ValueError as error:
        raise ValueError(f"{error}; {remedy}") from error
    if json.loads(run_json(settings)) != fields:  # "0" for 0, for example, or unknown fields
        raise ValueError(f"{damaged}: {remedy}")
    return settings


def differences(existing: SamplingSettings, now: SamplingSettings) -> list[str]:
    """Describe the settings in which a job differs from the one in a folder, so that it cannot continue it."""
    old, new = (
        {**vars(one), **vars(one.rules), **(vars(one.prompts) if one.prompts else {})} for one in (existing, now)
    )
    found: list[str] = []
    if existing.precision == now.precision and existing.fingerprint != now.fingerprint:  # rounding changes both
        same_name = f"other weights, palette or configuration of {now.model}"
        found.append(
            f"model ({existing.model}, not {now.model})" if existing.model != now.model else f"model ({same_name})"
        )
    ignored = ["model", "fingerprint", "num", "rules", "prompts"]
    if existing.backend != now.backend:
        ignored.append("batch_size")  # which only some backends have
    compared = [name for name in {**old, **new} if name not in ignored]
    found += [
        f"{_WORDS.get(name, name)} ({old.get(name)}, not {new.get(name)})"
        for name in compared
        if old.get(name) != new.get(name)
    ]
    may_grow = existing.prompts is None and now.prompts is None
    if not found and (now.num < existing.num or (now.num != existing.num and not may_grow)):
        found.append(f"num ({existing.num}, not {now.num}: it may only grow)")
    return found


_WORDS = {
    "file_format": "format", "source_fingerprint": "content of the images", "num_images": "number of images",
    "num_kept": "number of kept pixels", "num_completions": "number of completions",
}  # fmt: skip


def folders_of(settings: SamplingSettings, items: Sequence[range]) -> set[str]:
    """The subfolders in which the files of some shards are; "" is the job's folder itself."""
    if settings.file_format != "png":
        return {""}
    ends = ((part.start // _FILES_PER_FOLDER, (part.stop - 1) // _FILES_PER_FOLDER) for part in items if len(part))
    return {f"{number:04d}" for first, last in ends for number in range(first, last + 1)}
