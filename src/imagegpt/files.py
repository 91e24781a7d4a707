"""Writing files so that they appear whole or not at all, locking folders, and what a file of ours says about itself."""

import contextlib
import errno
import hashlib
import io
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock, Timeout

from imagegpt.text import printable

if TYPE_CHECKING:
    from PIL import Image

Content = TypeVar("Content")

FORMAT_KEY = "format_version"  # in every JSON and YAML file of ours; what is written changes, the number goes up
LOCK_FILE = ".imagegpt.lock"
FETCHING = ".imagegpt.fetching"  # a folder in that of a download, for what is not whole and checked yet

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")  # as `atomic_write` calls them


def check_format(content: Mapping[str, Any], version: int, *, what: str, remedy: str) -> None:
    """See that a file was written in the version of its format that we read.

    Args:
        content: of the file; without `FORMAT_KEY` it is older than all versions.
        version: the one we read and write.
        what: the file, for the error: its path, mostly.
        remedy: what the user can do about another version.
    Raises: ValueError if it is another one.
    """
    found = content.get(FORMAT_KEY, "an older one")
    if type(found) is not int or found != version:
        raise ValueError(f"{what} has format version {found}, this imagegpt reads {version}: {remedy}")


def read_own(
    path: Path,
    schema: type[Content],
    version: int,
    *,
    remedy: str,
    kind: str | None = None,
    max_bytes: int | None = None,
) -> Content:
    """The content of a JSON file that imagegpt wrote, or that says so.

    Args:
        path: of the file.
        schema: as in `validate`.
        version: of its format.
        remedy: what the user can do if it is none, or of another version.
        kind: what the file must say of itself under "kind".
        max_bytes: of the file; None is what `read_json` allows.
    Raises: OSError if it cannot be read; ValueError, which names the file and ends with the remedy, if it is not such a
        file.
    """
    from imagegpt.schemas import MAX_JSON_BYTES, read_json, validate  # pydantic takes a third of a second to import

    damaged = f"{path} was not written by imagegpt or is damaged"
    try:
        content = read_json(path, max_bytes=max_bytes or MAX_JSON_BYTES)
    except ValueError as error:
        raise ValueError(f"{damaged}: {remedy}") from error
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise ValueError(f"{damaged}: {remedy}")
    check_format(content, version, what=str(path), remedy=remedy)
    try:
        return validate(content, schema, damaged)
    except ValueError as error:
        raise ValueError(f"{error}; {remedy}") from error


def cache_folder() -> Path:
    """Where files go that only save work: `$XDG_CACHE_HOME/imagegpt`, or `~/.cache/imagegpt`. It may not exist.

    As its specification asks, `XDG_CACHE_HOME` is ignored unless it is absolute. Users without a home, as containers
    have them (no HOME, and a number that the system has no name for), get a folder beside other temporary files.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if caches.is_absolute():
        return caches / "imagegpt"
    try:
        return Path.home() / ".cache" / "imagegpt"
    except RuntimeError:
        owner = str(os.getuid()) if hasattr(os, "getuid") else "cache"
        return Path(tempfile.gettempdir()) / f"imagegpt-{owner}"


def expand_home(text: str) -> str:
    """A path with `~` or `~name` at its start replaced by that home.

    Raises: ValueError if there is no such home.
    """
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:  # no such user, or nobody knows where this one is at home
        if Path(text).exists():  # a file that is called so
            return f"./{text}"
        home = text.partition("/")[0]
        raise ValueError(f"nobody knows which folder {home} is: give the path without it") from None


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


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits; a gigabyte takes about a second."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def final_name(name: str) -> str:
    """The name that a temporary file of `atomic_write` would have got in the end; other names as they are."""
    temporary = _TEMPORARY.fullmatch(name)
    return temporary[1] if temporary else name


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


def png_bytes(image: "Image.Image", facts: Mapping[str, Any], version: str) -> bytes:
    """An image as a PNG, with facts in its metadata, beside who made it; the same image and facts give the same bytes.

    Args:
        image: of a mode that PNG knows.
        facts: how it was made; model, seed, rules and such.
        version: of this package, which this file may not import.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Software", f"imagegpt {version}")
    info.add_text("Comment", "created with iGPT")
    for key, value in facts.items():
        info.add_itxt(key, printable(str(value)))  # a name may be no UTF-8
    content = io.BytesIO()
    image.save(content, format="PNG", pnginfo=info)
    return content.getvalue()
