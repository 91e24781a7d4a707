"""Writing files so that they appear whole or not at all."""

import contextlib
import errno
import os
import re
import secrets
from pathlib import Path

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")  # as `atomic_write` calls them


def atomic_write(path: Path, content: bytes, what: str, *, durable: bool = True) -> None:
    """Write a file whole or not at all: under a temporary name beside it, then renamed over it.

    Args:
        path: of the file; its folder must exist. A symbolic link stays one: the file it points at is replaced.
        content: all of it.
        what: its name in the error, for example "the palette".
        durable: wait until the disk has it, so that it survives a power cut; about 10 ms on a slow disk.
    Raises: OSError if it cannot be written; nothing is left behind.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(content)
        if durable:
            sync(temporary)
        temporary.replace(target)
        if durable:
            sync(target.parent)
    except OSError as error:
        raise cannot_write(what, path, error) from error
    finally:
        with contextlib.suppress(OSError):  # where it could not be made, it cannot be removed
            temporary.unlink()


def cannot_write(what: str, path: Path, error: OSError) -> OSError:
    """The sentence for something that the system cannot write.

    Args:
        what: its name, for example "the palette".
        path: where it was to go.
        error: the system's.
    """
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = "make room there, or choose another place" if is_full else "choose another place"
    return OSError(f"{what} cannot be written to {path} ({error.strerror or error}): {advice}")


def sync(path: Path) -> None:
    """Wait until a file, or the list of files in a folder, is on the disk."""
    if path.is_dir():
        if os.name == "nt":  # Windows opens no folders
            return
        handle = os.open(path, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some file systems cannot do this for folders
                os.fsync(handle)
        finally:
            os.close(handle)
        return
    with path.open("r+b") as file:  # Windows wants the file open for writing
        os.fsync(file.fileno())


def final_name(name: str) -> str:
    """The name that a temporary file of `atomic_write` would have got in the end; other names as they are."""
    temporary = _TEMPORARY.fullmatch(name)
    return temporary[1] if temporary else name
