"""The folder of a run: its settings, the names of its files, what is there already, and what has no place there.

Files appear whole or not at all (`files.atomic.atomic_write`), so a file that is there is done, and the folder itself
is all the state there is.
"""

import dataclasses
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagegpt.common import ranges
from imagegpt.files.atomic import atomic_write, final_name
from imagegpt.files.locks import LOCK_FILE, lock_folder, locked
from imagegpt.files.schemas import validate
from imagegpt.files.versions import FORMAT_KEY, read_own
from imagegpt.jobs.ranks import Workers
from imagegpt.sampling import SamplingRules

RUN_FORMAT = 2  # of run.json
FILE_FORMATS = ("png", "npz", "arrow")
MANIFEST = "run.json"
_DOING = "draws images into"
_KIND = "images drawn by imagegpt"

_PNGS_A_FOLDER = 10**4
_LOCK = re.compile(r"\.imagegpt(-\d+)?\.lock")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """All that decides which files a run consists of and what they contain; the contents of `run.json`.

    Args:
        model: its name, for people and the metadata of the images.
        fingerprint: a hash of its weights, configuration and palette; this is what makes it the same model.
        precision: the weights are sampled in, "float32" for example.
        seed: of the run; image k has `image_seed(seed, k)`.
        rules: how pixels are drawn.
        file_format: one of `FILE_FORMATS`.
        batch_size: images a block.
        backend: what computed the steps: others may round otherwise.
        num: images in all; the one setting that may grow.
        version: of this package.
    """

    model: str
    fingerprint: str
    precision: str
    seed: int
    rules: SamplingRules
    file_format: str
    batch_size: int
    backend: str
    num: int
    version: str

    def to_json(self) -> str:
        """The text of `run.json`."""
        fields = {"kind": _KIND, FORMAT_KEY: RUN_FORMAT, **dataclasses.asdict(self)}
        return json.dumps(fields, indent=2) + "\n"

    def __post_init__(self) -> None:
        ranges.SEED.check("seed", self.seed)
        ranges.BATCH.check("batch_size", self.batch_size)
        ranges.NUM_IMAGES.check("num", self.num)
        if self.file_format not in FILE_FORMATS:
            raise ValueError(f"file_format is {self.file_format!r}: it must be one of {', '.join(FILE_FORMATS)}")

    @property
    def num_blocks(self) -> int:
        """How many blocks there are; the last is drawn whole, too, and written as far as needed."""
        return -(-self.num // self.batch_size)

    def block(self, number: int) -> range:
        """The images of a block that are asked for."""
        return range(number * self.batch_size, min((number + 1) * self.batch_size, self.num))

    def files(self, block: range) -> list[tuple[str, range]]:
        """The files of a block, as paths within the folder, and the images each of them holds."""
        if self.file_format == "png":
            return [(self._name(index), range(index, index + 1)) for index in block]
        return [(self._name(block.start), block)]

    def first_image(self, path: str) -> int | None:
        """The first image in a file of this name, None if no file of the run is called so."""
        digits = re.search(r"(\d{8})\.[a-z]+\Z", path)
        index = int(digits[1]) if digits else -1
        step = 1 if self.file_format == "png" else self.batch_size
        return index if 0 <= index < self.num and index % step == 0 and self._name(index) == path else None

    def _name(self, index: int) -> str:
        name = f"{index:08d}.{self.file_format}"
        return f"{index // _PNGS_A_FOLDER:04d}/{name}" if self.file_format == "png" else name


def differences(there: RunSettings, now: RunSettings) -> list[str]:
    """The settings in which a run differs from the one in a folder so that it cannot go on with it, told in words."""
    old, new = ({**vars(one), **vars(one.rules)} for one in (there, now))
    told = []
    if there.precision == now.precision and there.fingerprint != now.fingerprint:  # rounding changes the hash, too
        same_name = f"other weights, palette or configuration of {now.model}"
        told.append(f"model ({there.model}, not {now.model})" if there.model != now.model else f"model ({same_name})")
    told += [
        f"{'format' if name == 'file_format' else name} ({old[name]}, not {new[name]})"
        for name in old
        if name not in ("model", "fingerprint", "num", "rules") and old[name] != new[name]
    ]
    if now.num < there.num:
        told.append(f"num ({there.num}, not {now.num}: it may only grow)")
    return told


def read_settings(folder: Path) -> RunSettings | None:
    """The settings of the run in a folder, None if there is none.

    Raises: ValueError if there is a `run.json` that is not ours, or of another version.
    """
    path, remedy = folder / MANIFEST, "choose another folder"
    try:
        fields = read_own(path, dict[str, Any], RUN_FORMAT, kind=_KIND, remedy=remedy)
    except (FileNotFoundError, NotADirectoryError):
        return None
    damaged = f"{path} was not written by imagegpt or is damaged"
    try:
        settings = validate(fields, RunSettings, damaged)
    except ValueError as error:
        raise ValueError(f"{error}; {remedy}") from error
    if json.loads(settings.to_json()) != fields:  # "0" for 0, for example, or more fields than there are
        raise ValueError(f"{damaged}: {remedy}")
    return settings


def check_folder(folder: Path) -> RunSettings | None:
    """See that a run may use a folder: it is not there yet, is empty, or holds a run and nothing else.

    Returns: the settings of the run that is there.
    Raises: ValueError or OSError, in one sentence, if not. Nothing is changed.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: many images need a folder, or a name that ends in .png for one")
    if not folder.exists() and not folder.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {folder.parent}: make it first, or choose another place")
    there = read_settings(folder)
    for path in _files(folder):
        name = _lasting(path)
        if name != MANIFEST and not _LOCK.fullmatch(path) and (there is None or there.first_image(name) is None):
            raise ValueError(
                f"{folder} holds {path}, which is no part of a run of images: move it away or choose another folder"
            )
    return there


def locked_share(folder: Path, workers: Workers) -> AbstractContextManager[None]:
    """Keep other processes from drawing this one's share of the images.

    Raises: ValueError if another process draws it.
    """
    name = f".imagegpt-{workers.rank}.lock" if workers.rank else LOCK_FILE
    return locked(folder, _DOING, name=name)


def check_all_ended(folder: Path) -> None:
    """See that none of the other processes of an earlier run is at work.

    Raises: ValueError if one is.
    """
    for path in folder.iterdir():
        if _LOCK.fullmatch(path.name) and path.name != LOCK_FILE:
            lock_folder(folder, _DOING, name=path.name).release()


def remove_temporaries(folder: Path, settings: RunSettings, workers: Workers) -> None:
    """Remove what a killed run left half written, in the share of this process: the others may be writing theirs."""
    for path in _files(folder):
        name = _lasting(path)
        if name == path:
            continue
        index = settings.first_image(name)
        if workers.rank == 0 if index is None else workers.owns(index // settings.batch_size):
            (folder / path).unlink(missing_ok=True)


def remove_images(folder: Path, settings: RunSettings) -> None:
    """Remove the images of a run, and nothing else."""
    for path in list(_files(folder)):
        if settings.first_image(_lasting(path)) is not None:
            (folder / path).unlink(missing_ok=True)
    for place in {(folder / path).parent for path, _ in settings.files(range(0, settings.num, _PNGS_A_FOLDER))}:
        if place != folder and place.is_dir():
            place.rmdir()


def write_settings(folder: Path, settings: RunSettings) -> None:
    """Write `run.json`."""
    atomic_write(folder / MANIFEST, settings.to_json().encode(), "the settings of the run")


def wait_for_settings(folder: Path, accept: Callable[[RunSettings], Any], wait_s: float) -> RunSettings:
    """Wait until process 0 has written settings.

    Args:
        folder: of the run.
        accept: whether they are the ones waited for.
        wait_s: how long.
    Raises: TimeoutError if they do not come.
    """
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        settings = read_settings(folder)
        if settings is not None and accept(settings):
            return settings
        time.sleep(0.05)
    raise TimeoutError(
        f"process 0 has not written {folder / MANIFEST} for this run in {wait_s:g} s: see what became of it, "
        "and that all processes have the same arguments and the same folder"
    )


def _files(folder: Path) -> Iterator[str]:
    """The paths of what is in a folder, within it; one level of folders with four digits is looked into."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if not (entry.is_dir(follow_symlinks=False) and re.fullmatch(r"\d{4}", entry.name)):
                yield entry.name
                continue
            with os.scandir(entry.path) as images:
                yield from (f"{entry.name}/{image.name}" for image in images)


def _lasting(path: str) -> str:
    """The path that a temporary file would have got in the end; other paths as they are."""
    head, slash, name = path.rpartition("/")
    return f"{head}{slash}{final_name(name)}"
