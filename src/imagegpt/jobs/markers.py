"""Which shards of a job are finished, which are being made, and which processes take part.

    folder/.imagegpt.lock            held while settings are read and written
    folder/.imagegpt/00012.done      shard 12 is finished; holds the shard's record, which is empty for most jobs
    folder/.imagegpt/00013.lock      held by the process that makes shard 13
    folder/.imagegpt/process-0.lock  held by a process that takes part in the job

A marker is written after the files of its shard, so a shard without a marker is not finished, and the number of
finished shards is known from one directory listing. The operating system releases the locks of a process that dies:
any other process takes over its shard.
"""

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from imagegpt.files.atomic import atomic_write, target_name
from imagegpt.files.locks import BusyError, folder_lock, lock_folder

STATE_FOLDER = ".imagegpt"

_FOREVER = -1.0  # another process may hash a large source while it holds the folder's lock
_LEAVING_S = 10.0
_MARKER = re.compile(r"(\d{5,})\.done")
_OWN = re.compile(r"\d{5,}\.(done|lock)|process-\d+\.lock")
_TEMPORARY = re.compile(r"\..+\.tmp")

Settings = TypeVar("Settings")


class Markers:
    """The finished shards of a job.

    Args:
        folder: of the job.
        doing: the activity, for error messages.
    """

    def __init__(self, folder: Path, doing: str) -> None:
        self._root, self._folder, self._doing = folder, folder / STATE_FOLDER, doing

    def finished(self) -> set[int]:
        """The numbers of all finished shards; one directory listing."""
        try:
            names = os.listdir(self._folder)  # noqa: PTH208 - Path objects for 100,000 names take a second
        except FileNotFoundError:
            return set()
        return {int(found[1]) for name in names if (found := _MARKER.fullmatch(name))}

    def is_finished(self, shard: int) -> bool:
        """Whether a shard is finished."""
        return self._marker(shard).exists()

    def record(self, shard: int) -> str:
        """The record of a finished shard."""
        return self._marker(shard).read_text(encoding="utf-8", errors="replace")

    def mark(self, shard: int, record: str) -> None:
        """Mark a shard as finished."""
        atomic_write(self._marker(shard), record.encode(), "the marker of a finished shard")

    def unmark(self, shards: Iterable[int]) -> None:
        """Mark shards as not finished."""
        for shard in shards:
            self._marker(shard).unlink(missing_ok=True)

    @contextlib.contextmanager
    def claim(self, shard: int, wait_s: float = 0) -> Iterator[None]:
        """Keep other processes from making a shard.

        Raises: BusyError if another process is making it and does not end within `wait_s`.
        """
        name = f"{STATE_FOLDER}/{shard:05d}.lock"
        with folder_lock(self._root, self._doing, name=name, wait_s=wait_s):
            yield
            # A process that opened this file before still sees the marker, so a second lock file does no harm.
            with contextlib.suppress(OSError):
                (self._root / name).unlink()

    def _marker(self, shard: int) -> Path:
        return self._folder / f"{shard:05d}.done"


@contextlib.contextmanager
def joined(folder: Path, doing: str, agree: Callable[[Callable[[], None]], Settings]) -> Iterator[Settings]:
    """Take part in the work in a folder, which must exist, within a `with` block.

    Args:
        folder: of the job.
        doing: the activity, for error messages.
        agree: called while no other process can join; reads the settings in the folder, or writes them. Its argument
            raises BusyError if other processes are at work, and must be called before any file is replaced.
    Returns: what `agree` returned.
    """
    place = folder / STATE_FOLDER
    with folder_lock(folder, doing, wait_s=_FOREVER):
        try:
            place.mkdir(exist_ok=True)
            with contextlib.suppress(BusyError):
                _check_alone(folder, doing)
                remove_temporaries(place, lambda _: True)
            settings = agree(lambda: _check_alone(folder, doing))
        except BaseException:
            with contextlib.suppress(OSError):
                place.rmdir()  # unless it is in use
            raise
        lock = _join(folder, doing)
    try:
        yield settings
    finally:
        _leave(folder, doing, lock)


def remove_temporaries(folder: Path, belongs: Callable[[str], bool]) -> None:
    """Remove the incomplete files that killed processes left in a folder.

    Args:
        folder: to be searched.
        belongs: whether a file of this final name is written by nobody else at this moment.
    """
    for name in os.listdir(folder) if folder.is_dir() else ():  # noqa: PTH208 - as above
        if name.startswith(".") and target_name(name) != name and belongs(target_name(name)):
            (folder / name).unlink(missing_ok=True)


def foreign_state(folder: Path) -> list[str]:
    """The files in the state folder of a job that are not ours, as paths within the job's folder."""
    place = folder / STATE_FOLDER
    names = sorted(os.listdir(place)) if place.is_dir() else []  # noqa: PTH208 - as above
    foreign = (name for name in names if not (_OWN.fullmatch(target_name(name)) or _TEMPORARY.fullmatch(name)))
    return [f"{STATE_FOLDER}/{name}" for name in foreign]


def _check_alone(folder: Path, doing: str) -> None:
    """Raise BusyError if another process takes part in the job."""
    for path in (folder / STATE_FOLDER).glob("process-*.lock"):
        lock_folder(folder, doing, name=f"{STATE_FOLDER}/{path.name}").release()


def _join(folder: Path, doing: str) -> FileLock:
    for number in itertools.count():
        with contextlib.suppress(BusyError):
            return lock_folder(folder, doing, name=f"{STATE_FOLDER}/process-{number}.lock")
    raise AssertionError("there is always a free number")


def _leave(folder: Path, doing: str, lock: FileLock) -> None:
    try:
        # The file may be removed only while nobody can join: a process that has just opened it would lock a ghost.
        with folder_lock(folder, doing, wait_s=_LEAVING_S):
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)
    except (BusyError, OSError):
        lock.release()
