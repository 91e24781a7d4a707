"""Paths that depend on the user: the cache folder and `~`."""

import os
import tempfile
from pathlib import Path

PARTIAL_DOWNLOAD = ".imagegpt.fetching"  # subfolder of a download, for files that are incomplete or not yet verified


def cache_folder() -> Path:
    """Return the cache folder, which may not exist: `$XDG_CACHE_HOME/imagegpt`, or `~/.cache/imagegpt`.

    A relative `XDG_CACHE_HOME` is ignored, as its specification requires. Users without a home folder, as in containers
    (HOME is not set, and the user ID has no entry in the system's user database), get a temporary folder.
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
    """Replace `~` or `~user` at the start of a path by the user's home folder.

    Raises: ValueError if there is no such user or home folder.
    """
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:  # there is no such user, or no home folder
        if Path(text).exists():  # a file whose name starts with ~
            return f"./{text}"
        home = text.partition("/")[0]
        raise ValueError(f"{home} has no home folder: give the full path instead") from None
