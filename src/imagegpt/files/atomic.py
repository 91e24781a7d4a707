"""Write files atomically: a file is complete or it does not exist."""

import contextlib
import errno
import os
import re
import secrets
from pathlib import Path

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")  # as named by `temporary_path`


def atomic_write(path: Path, content: bytes, what: str, *, durable: bool = True) -> None:
    """Write a file atomically: to a temporary file in the same folder, which is then renamed.

    Args:
        path: of the file, in an existing folder. If it is a symbolic link, the file it points to is replaced.
        what: what the file is, for the error message, for example "the palette".
        durable: flush to disk, so that the file survives a power failure; about 10 ms on a slow disk.
    Raises: OSError if it cannot be written; no temporary file remains.
    """
    target = Path(os.path.realpath(path))
    temporary = temporary_path(target)
    try:
        temporary.write_bytes(content)
        if durable:
            fsync(temporary)
        temporary.replace(target)
        if durable:
            fsync(target.parent)
    except OSError as error:
        raise write_error(what, path, error) from error
    finally:
        with contextlib.suppress(OSError):  # where it could not be made, it cannot be removed
            temporary.unlink()


def write_error(what: str, path: Path, error: OSError) -> OSError:
    """Make the error to raise when writing fails.

    Args:
        what: what was being written, for example "the palette".
    """
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = "free some space, or choose another path" if is_full else "choose another path"
    return OSError(f"{what} cannot be written to {path} ({error.strerror or error}): {advice}")


def fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    if path.is_dir():
        if os.name == "nt":  # Windows cannot open folders
            return
        handle = os.open(path, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some file systems do not support this
                os.fsync(handle)
        finally:
            os.close(handle)
        return
    with path.open("r+b") as file:  # Windows requires write access
        os.fsync(file.fileno())


def temporary_path(path: Path) -> Path:
    """Return the path of a temporary file in the same folder, with a random name."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def target_name(name: str) -> str:
    """Return the name that a temporary file named by `temporary_path` will be renamed to; other names unchanged."""
    temporary = _TEMPORARY.fullmatch(name)
    return temporary[1] if temporary else name
