"""Finding the image files below a folder.

The order is that of the names, folder by folder, so that it is the same on every machine. Names that start with a dot
are not looked at, nor files whose suffix is no image format's. Links are followed, but neither in circles, nor to one
folder twice within the same first-level folder: a few links to each other would lead to more files than there are.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from imagegpt.images.decoding import PHONE_SUFFIXES


def image_files(folder: Path) -> Iterator[tuple[str, ...]]:
    """The image files below a folder, in order, each as the parts of its path."""
    suffixes, root = _suffixes(), os.path.realpath(folder)

    def walk(place: str, parts: tuple[str, ...], seen: set[str]) -> Iterator[tuple[str, ...]]:
        here = os.path.realpath(place)
        if here in seen:
            return
        seen.add(here)
        for entry in _entries(place):
            if entry.is_dir():
                yield from walk(entry.path, (*parts, entry.name), seen if parts else {root})
            elif _suffix(entry.name) in suffixes:
                yield (*parts, entry.name)

    return walk(os.fspath(folder), (), set())


def has_images(folder: Path, *, deep: bool = True) -> bool:
    """Whether there is an image file in a folder, or below it, found without listing all of them."""
    suffixes, seen, waiting = _suffixes(), set[str](), [os.fspath(folder)]
    while waiting:
        place = waiting.pop()
        here = os.path.realpath(place)
        if here in seen:
            continue
        seen.add(here)
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if deep and entry.is_dir():
                    waiting.append(entry.path)
                elif _suffix(entry.name) in suffixes and not entry.is_dir():
                    return True
    return False


def folders_in(folder: Path) -> list[Path]:
    """The first-level folders, in order, but for links to this one or one above it."""
    here = folder.resolve()
    above = {here, *here.parents}
    found = [folder / entry.name for entry in _entries(os.fspath(folder)) if entry.is_dir()]
    return [path for path in found if not path.is_symlink() or path.resolve() not in above]


def empty_folders(folder: Path) -> list[Path]:
    """The first-level folders with nothing in them, unless its name starts with a dot."""
    return [path for path in folders_in(folder) if not _entries(os.fspath(path))]


def _entries(place: str) -> list[os.DirEntry[str]]:
    with os.scandir(place) as entries:
        return sorted((one for one in entries if not one.name.startswith(".")), key=lambda one: one.name)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - millions of times


def _suffixes() -> frozenset[str]:
    """Of files that Pillow reads, if need be with another library; .pdf and some others it only writes."""
    readable = (suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)
    return frozenset((*readable, *PHONE_SUFFIXES))
