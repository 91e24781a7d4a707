"""Folders that depend on the user: the cache, and `~`."""

import os
import tempfile
from pathlib import Path

FETCHING = ".imagegpt.fetching"  # a folder in that of a download, for what is not whole and checked yet


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
