"""Finding the image files below a folder.

Files are sorted by name, folder by folder, so that their order is the same on every machine. Names that start with a
dot are skipped, and files without the suffix of an image format. Links are followed, but not in circles, and not to one
folder twice within the same first-level folder: a few folders with links to each other would have endless files.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from imagegpt.images.decoding import OPTIONAL_SUFFIXES


def image_files(folder: Path) -> Iterator[tuple[str, ...]]:
    """Yield the image files below a folder, in order, each as the components of its path."""
    suffixes, root = _suffixes(), os.path.realpath(folder)

    def walk(path: str, components: tuple[str, ...], seen: set[str]) -> Iterator[tuple[str, ...]]:
        here = os.path.realpath(path)
        if here in seen:
            return
        seen.add(here)
        for entry in _entries(path):
            if entry.is_dir():
                yield from walk(entry.path, (*components, entry.name), seen if components else {root})
            elif _suffix(entry.name) in suffixes:
                yield (*components, entry.name)

    return walk(os.fspath(folder), (), set())


def has_images(folder: Path, *, deep: bool = True) -> bool:
    """Return whether a folder has an image file, or with `deep` one below it; stops at the first."""
    suffixes, seen, waiting = _suffixes(), set[str](), [os.fspath(folder)]
    while waiting:
        path = waiting.pop()
        here = os.path.realpath(path)
        if here in seen:
            continue
        seen.add(here)
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if deep and entry.is_dir():
                    waiting.append(entry.path)
                elif _suffix(entry.name) in suffixes and not entry.is_dir():
                    return True
    return False


def folders_in(folder: Path) -> list[Path]:
    """Return the first-level folders, in order, except links to this folder or one above it."""
    here = folder.resolve()
    above = {here, *here.parents}
    found = [folder / entry.name for entry in _entries(os.fspath(folder)) if entry.is_dir()]
    return [path for path in found if not path.is_symlink() or path.resolve() not in above]


def empty_folders(folder: Path) -> list[Path]:
    """Return the first-level folders that are empty, apart from names that start with a dot."""
    return [path for path in folders_in(folder) if not _entries(os.fspath(path))]


def _entries(path: str) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return sorted((one for one in entries if not one.name.startswith(".")), key=lambda one: one.name)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - millions of times


def _suffixes() -> frozenset[str]:
    """The suffixes of files that Pillow reads, some of them with another library; .pdf and others it only writes."""
    readable = (suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)
    return frozenset((*readable, *OPTIONAL_SUFFIXES))
