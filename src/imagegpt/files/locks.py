"""Locks on folders and names, so that two processes never write the same files."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_FILE = ".imagegpt.lock"


class BusyError(ValueError):
    """Another process is at work in a folder."""


def lock_folder(folder: Path, doing: str, *, name: str = LOCK_FILE, wait_s: float = 0) -> FileLock:
    """Keep other processes out of a folder until the lock that is returned is released or the process ends.

    The lock is on a small file in the folder, which stays there.

    Args:
        folder: it must exist.
        doing: what the holder does with it, for the error: "encodes images into", for example.
        name: of the lock's file, where processes share the folder and each locks its part.
        wait_s: how long to wait for another process.
    Raises: BusyError if another process holds it; OSError if nothing can be locked there.
    """
    # Not bound to a thread: whoever ends the work releases it.
    lock = FileLock(folder / name, thread_local=False)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise BusyError(f"another process {doing} {folder}: wait for it, or end it first") from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"{folder} cannot be locked against other processes ({reason}): choose another place") from error
    return lock


@contextlib.contextmanager
def locked(folder: Path, doing: str, *, name: str = LOCK_FILE, wait_s: float = 0) -> Iterator[None]:
    """`lock_folder` while a block lasts."""
    lock = lock_folder(folder, doing, name=name, wait_s=wait_s)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def locked_name(path: Path) -> Iterator[None]:
    """Keep other processes from making a file or folder of this name; the lock is a file beside it, removed at the end.

    Raises: BusyError if another process makes it; OSError if nothing can be locked there.
    """
    name = f".{path.name}.lock"
    with locked(path.parent, f"makes {path.name} in", name=name):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows does not remove what is open
                (path.parent / name).unlink()


def remove_if_unused(folder: Path) -> None:
    """Remove a folder that was just made, unless there is more in it than the file of its lock."""
    with contextlib.suppress(OSError):
        if [path.name for path in folder.iterdir()] == [LOCK_FILE]:
            (folder / LOCK_FILE).unlink()
        folder.rmdir()
