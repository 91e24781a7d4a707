"""The folder of a job: whether it can be used, and making it."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from imagegpt.files.atomic import target_name
from imagegpt.files.locks import LOCK_FILE, remove_if_empty
from imagegpt.jobs.markers import STATE_FOLDER, foreign_state


def check_place(folder: Path, what: str) -> None:
    """Check that a job's folder exists or can be made.

    Args:
        folder: of the job.
        what: needs a folder, for the error message.
    Raises: NotADirectoryError or FileNotFoundError.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: {what}")
    if not folder.exists() and not folder.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {folder.parent}: create it first, or choose another path")


def check_content(folder: Path, paths: Sequence[str], is_ours: Callable[[str], bool], what: str) -> None:
    """Check that a folder contains nothing but files of its job.

    Args:
        folder: of the job.
        paths: of its files, within the folder.
        is_ours: whether a file of this path belongs to the job; incomplete files are asked for by their final path.
        what: the files belong to, for the error message.
    Raises: ValueError, naming the first other file.
    """
    for path in [*paths, *foreign_state(folder)]:
        head, slash, name = path.rpartition("/")
        is_known = path in (LOCK_FILE, STATE_FOLDER) or is_ours(f"{head}{slash}{target_name(name)}")
        if not is_known:
            raise ValueError(
                f"{folder} holds {path}, which is no part of {what}: move it away or choose another folder"
            )


@contextmanager
def new_or_existing(folder: Path) -> Iterator[None]:
    """Make a job's folder if it does not exist; remove it again if nothing was written into it."""
    is_new = not folder.exists()
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OSError(f"{folder} cannot be made ({error.strerror}): choose another path") from error
    try:
        yield
    finally:
        if is_new:
            remove_if_empty(folder)
