"""Writing files so that they appear whole or not at all, locking folders, and what a file of ours says about itself."""

import contextlib
import io
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

FORMAT_KEY = "format_version"  # in every JSON and YAML file of ours; what is written changes, the number goes up


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


def cache_folder() -> Path:
    """Where files go that only save work: `$XDG_CACHE_HOME/imagegpt`, or `~/.cache/imagegpt`. It may not exist.

    As its specification asks, `XDG_CACHE_HOME` is ignored unless it is absolute.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (caches if caches.is_absolute() else Path("~/.cache").expanduser()) / "imagegpt"


def atomic_write(path: Path, content: bytes, what: str) -> None:
    """Write a file whole or not at all: under a temporary name beside it, then renamed over it.

    Args:
        path: of the file; its folder must exist.
        content: all of it.
        what: its name in the error, for example "the palette".
    Raises: OSError if it cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{what} cannot be written to {path} ({reason}): choose another place") from error
    finally:
        with contextlib.suppress(OSError):  # where it could not be made, it cannot be removed
            temporary.unlink()


@contextlib.contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Keep other processes out of a folder. The system lets go of the lock however the process ends; no file is left.

    Args:
        folder: it must exist.
        doing: what the holder does with it, for the error: "encodes images into", for example.
    Raises: ValueError if another process holds it.
    """
    try:
        import fcntl  # Windows has none
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process {doing} {folder}: wait for it, or end it first") from None
        except OSError:
            pass  # some network file systems have no locks
        yield
    finally:
        os.close(handle)


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
        info.add_itxt(key, str(value))
    content = io.BytesIO()
    image.save(content, format="PNG", pnginfo=info)
    return content.getvalue()
