"""Folders of image files, with or without a subfolder for each class, with or without a folder for each split."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from imagegpt.data.sources.base import UNLABELED, Example, ImageSource, SourceFormat
from imagegpt.data.sources.file_listing import empty_folders, has_images, image_files
from imagegpt.data.sources.folder_layout import check_classes, image_root, split_folders
from imagegpt.files.atomic import atomic_write


class FolderSource(ImageSource):
    """The image files of a folder and its subfolders.

    Args:
        folder: to read.
        name: as the user calls the source.
        split: which of its splits this is; None if it has none.
        classes: names of the classes, which are those of the first-level subfolders.
        files: the paths of the images in the folder, each as its components.
    """

    has_a_file_each = True

    def __init__(
        self, folder: Path, name: str, split: str | None, classes: list[str] | None, files: list[tuple[str, ...]]
    ) -> None:
        self.folder, self.name, self.split, self.classes = folder, name, split, classes
        self._files = ["/".join(components) for components in files]  # as strings: a tenth of the memory, for millions
        self._class_numbers = {name: number for number, name in enumerate(classes or () if _are_classes(files) else ())}
        self._listing: Path | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the files: a process starts faster if it does not receive a million names through a pipe.
        return _reopened, (self.folder, self.name, self.split, self.classes, self._listing)

    def save_listing(self, path: Path) -> None:
        """See `ImageSource`."""
        content = "\0".join(self._files).encode(errors="surrogateescape")
        atomic_write(path, content, "the list of images", durable=False)
        self._listing = path

    def __len__(self) -> int:
        return len(self._files)

    def _read(self, index: int) -> Example:
        file = self._files[index]
        return Example(image=self.folder / file, label=self._class_numbers.get(file.partition("/")[0]), name=file)

    def files(self) -> Iterable[Path]:
        """See `ImageSource`."""
        return (self.folder / file for file in self._files)

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """See `ImageSource`."""
        found = (self._class_numbers.get(file.partition("/")[0], UNLABELED) for file in self._files)
        return np.fromiter(found, np.int64, len(self._files))


def open_folder(folder: Path, name: str, split: str | None) -> FolderSource:
    """Open the images of a folder, or of one of its splits.

    Labels mean the same in all splits: the classes are those of all splits together.

    Raises: ValueError if there are no images, if a class has no training images, or if the layout is ambiguous.
    """
    root = image_root(folder)
    folders: dict[str | None, Path] = {one: image_root(path, one) for one, path in split_folders(root, name).items()}
    folders = folders or {None: root}
    for path in folders.values():
        check_classes(path, name)
    files = {one: list(image_files(path)) for one, path in folders.items()}
    if not files[split]:
        raise ValueError(
            f"{folders[split]} holds no images: give a folder with files such as .png or .jpg, or another source"
        )
    for one, path in folders.items():
        if _are_classes(files[one]) and (empty := empty_folders(path)):
            raise ValueError(f"{empty[0]} is empty: a class needs images to train on, add some or remove the folder")
    classes = {one: {file[0] for file in paths} for one, paths in files.items() if _are_classes(paths)}
    for one, found in classes.items():
        if missing := sorted(found - classes.get("train", set())) if files.get("train") else []:
            raise ValueError(
                f"{name} has images of {missing[0]} in {folders[one].name} and none in {folders['train'].name}: "
                "a class needs images to train on, add some or move the folder away"
            )
    return FolderSource(folders[split], name, split, sorted(set().union(*classes.values())) or None, files[split])


def _reopened(
    folder: Path, name: str, split: str | None, classes: list[str] | None, listing: Path | None
) -> FolderSource:
    if listing is None:
        return FolderSource(folder, name, split, classes, list(image_files(folder)))
    files = listing.read_bytes().decode(errors="surrogateescape").split("\0")
    return FolderSource(folder, name, split, classes, [tuple(file.split("/")) for file in files])


def _are_classes(files: list[tuple[str, ...]]) -> bool:
    """Return whether every file is in a subfolder."""
    return bool(files) and all(len(components) > 1 for components in files)


class FolderFormat(SourceFormat):
    """A folder of image files."""

    description = "a folder of images"

    def matches(self, location: str) -> bool:
        """See `SourceFormat`."""
        return Path(location).is_dir() and has_images(Path(location))

    def splits(self, location: str) -> list[str]:
        """See `SourceFormat`: train, validation, test."""
        return list(split_folders(image_root(Path(location)), location))

    def open(self, location: str, split: str | None) -> FolderSource:
        """See `SourceFormat`."""
        return open_folder(Path(location), location, split)
