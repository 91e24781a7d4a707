"""Locks on folders and paths, so that two processes never write the same files."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_FILE = ".imagegpt.lock"


class BusyError(ValueError):
    """Another process holds the lock."""


def lock_folder(folder: Path, doing: str, *, name: str = LOCK_FILE, wait_s: float = 0) -> FileLock:
    """Lock a folder against other processes until the returned lock is released or this process ends.

    The lock is taken on a small file in the folder, which is not removed.

    Args:
        folder: must exist.
        doing: what the lock holder does with the folder, for the error message: "encodes images into", for example.
        name: of the lock file; processes that share a folder use one lock file per shard.
    Raises: BusyError if another process holds the lock; OSError if the file system does not support locks.
    """
    # Not thread-local: the thread that ends the work may not be the one that started it.
    lock = FileLock(folder / name, thread_local=False)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise BusyError(f"another process {doing} {folder}: wait for it, or end it first") from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"{folder} cannot be locked against other processes ({reason}): choose another path") from error
    return lock


@contextlib.contextmanager
def folder_lock(folder: Path, doing: str, *, name: str = LOCK_FILE, wait_s: float = 0) -> Iterator[None]:
    """Hold `lock_folder` within a `with` block."""
    lock = lock_folder(folder, doing, name=name, wait_s=wait_s)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def creation_lock(path: Path) -> Iterator[None]:
    """Keep other processes from creating the same file or folder, within a `with` block.

    The lock file lies beside `path` and is removed at the end.

    Raises: BusyError if another process is creating it; OSError if the file system does not support locks.
    """
    name = f".{path.name}.lock"
    with folder_lock(path.parent, f"makes {path.name} in", name=name):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows does not remove open files
                (path.parent / name).unlink()


def remove_if_empty(folder: Path) -> None:
    """Remove a newly created folder if it contains nothing but its lock file."""
    with contextlib.suppress(OSError):
        if [path.name for path in folder.iterdir()] == [LOCK_FILE]:
            (folder / LOCK_FILE).unlink()
        folder.rmdir()
