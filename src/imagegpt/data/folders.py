"""Folders of image files: with a subfolder for each class, or without; with a folder for each split, or without.

The order is that of the names, folder by folder, so that it is the same on every machine. Names that start with a dot
are not looked at, nor files whose suffix Pillow does not know.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from PIL import Image

from imagegpt.data.examples import UNLABELED, Example, ImageSource
from imagegpt.data.splits import canonical, in_order


class FolderSource(ImageSource):
    """The image files of a folder and its subfolders.

    Args:
        folder: where they are.
        name: what the user called the source.
        split: which of its splits this is, None if it has none.
        classes: names of the classes; files in a first-level subfolder of such a name belong to it.
        files: their paths in the folder, each as its parts.
    """

    has_a_file_each = True

    def __init__(
        self, folder: Path, name: str, split: str | None, classes: list[str] | None, files: list[tuple[str, ...]]
    ) -> None:
        self.folder, self.name, self.split, self.classes = folder, name, split, classes
        self._files = ["/".join(parts) for parts in files]  # as text: a tenth of the memory, for millions
        self._labels = {label: index for index, label in enumerate(classes)} if classes and _are_classes(files) else {}

    def __reduce__(self) -> tuple[Any, ...]:
        # By its name: another process is started faster than it is sent a million names.
        return _reopened, (self.folder, self.name, self.split, self.classes)

    def __len__(self) -> int:
        return len(self._files)

    def _read(self, index: int) -> Example:
        file = self._files[index]
        return Example(image=self.folder / file, label=self._labels.get(file.partition("/")[0]), name=file)

    def files(self) -> Iterable[Path]:
        """See `ImageSource`."""
        return (self.folder / file for file in self._files)

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """See `ImageSource`."""
        found = (self._labels.get(file.partition("/")[0], UNLABELED) for file in self._files)
        return np.fromiter(found, np.int64, len(self._files))


def open_folder(folder: Path, name: str, split: str | None) -> FolderSource:
    """The images of a folder, or of one of its splits, as `split_folders` calls it.

    Labels mean the same in all splits: the classes are those of all of them together.

    Raises: ValueError if there are no images.
    """
    parts = split_folders(folder, name)
    place = folder if split is None else parts[split]
    files = {part: list(image_files(part)) for part in parts.values() or [folder]}
    if not files[place]:
        raise ValueError(f"{place} holds no images: give a folder with files such as .png or .jpg, or another source")
    classes = sorted({file[0] for several in files.values() if _are_classes(several) for file in several})
    return FolderSource(place, name, split, classes or None, files[place])


def split_folders(folder: Path, name: str) -> dict[str, Path]:
    """The first-level folders that are splits, by their meaning ("val" is "validation"); none if there are none.

    Raises: ValueError if two mean the same, or another folder with images is beside them.
    """
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found: dict[str, Path] = {}
    for path in inner:
        meaning = canonical(path.name)
        if meaning is not None and meaning in found:
            raise ValueError(
                f"{name} has the folders {found[meaning].name} and {path.name}, which mean the same split: rename one"
            )
        if meaning is not None:
            found[meaning] = path
    others = [path for path in inner if found and canonical(path.name) is None and has_images(path)]
    if others:
        splits = ", ".join(path.name for path in found.values())
        raise ValueError(
            f"{name} has images in {others[0].name} beside the split {splits}: "
            "move one of them away, or rename it if it is a class"
        )
    return {split: found[split] for split in in_order(found)}


def image_files(folder: Path) -> Iterator[tuple[str, ...]]:
    """The image files below a folder, in order, each as the parts of its path. Links are followed, not in circles."""
    extensions = _extensions()

    def walk(place: str, parts: tuple[str, ...], above: frozenset[str]) -> Iterator[tuple[str, ...]]:
        here = os.path.realpath(place)
        if here in above:
            return
        with os.scandir(place) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from walk(entry.path, (*parts, entry.name), above | {here})
            elif _suffix(entry.name) in extensions:
                yield (*parts, entry.name)

    return walk(os.fspath(folder), (), frozenset())


def has_images(folder: Path) -> bool:
    """Whether there is an image file below a folder, found without listing all of them."""
    extensions = _extensions()
    for _, inner, names in os.walk(folder, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".")]
        if any(not name.startswith(".") and _suffix(name) in extensions for name in names):
            return True
    return False


def _reopened(folder: Path, name: str, split: str | None, classes: list[str] | None) -> FolderSource:
    return FolderSource(folder, name, split, classes, list(image_files(folder)))


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - millions of times


def _are_classes(files: list[tuple[str, ...]]) -> bool:
    """Whether every file is in a subfolder."""
    return bool(files) and all(len(parts) > 1 for parts in files)


def _extensions() -> frozenset[str]:
    """The suffixes of files that Pillow reads; it knows others that it only writes, such as .pdf."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)
