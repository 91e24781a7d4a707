"""Folders of image files: with a subfolder for each class, or without; with a folder for each split, or without."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from imagegpt.data.sources.base import UNLABELED, Example, ImageSource
from imagegpt.data.sources.file_listing import empty_folders, image_files
from imagegpt.data.sources.folder_layout import check_classes, picture_root, split_folders


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
    """The images of a folder, or of one of its splits, as `folder_splits` calls it.

    Labels mean the same in all splits: the classes are those of all of them together.

    Raises: ValueError if there are no images, if a class has none to train on, or if it cannot be told what is a class.
    """
    root = picture_root(folder)
    parts: dict[str | None, Path] = {part: picture_root(path, part) for part, path in split_folders(root, name).items()}
    parts = parts or {None: root}
    for path in parts.values():
        check_classes(path, name)
    files = {part: list(image_files(path)) for part, path in parts.items()}
    if not files[split]:
        raise ValueError(
            f"{parts[split]} holds no images: give a folder with files such as .png or .jpg, or another source"
        )
    for part, path in parts.items():
        if _are_classes(files[part]) and (empty := empty_folders(path)):
            raise ValueError(f"{empty[0]} is empty: a class needs images to train on, add some or remove the folder")
    classes = {part: {file[0] for file in several} for part, several in files.items() if _are_classes(several)}
    for part, found in classes.items():
        if missing := sorted(found - classes.get("train", set())) if files.get("train") else []:
            raise ValueError(
                f"{name} has images of {missing[0]} in {parts[part].name} and none in {parts['train'].name}: "
                "a class needs images to train on, add some or move the folder away"
            )
    return FolderSource(parts[split], name, split, sorted(set().union(*classes.values())) or None, files[split])


def folder_splits(folder: Path, name: str) -> list[str]:
    """The splits of a folder of images: train, validation, test; none if it has none.

    Raises: ValueError if it cannot be told what is a split.
    """
    return list(split_folders(picture_root(folder), name))


def _reopened(folder: Path, name: str, split: str | None, classes: list[str] | None) -> FolderSource:
    return FolderSource(folder, name, split, classes, list(image_files(folder)))


def _are_classes(files: list[tuple[str, ...]]) -> bool:
    """Whether every file is in a subfolder."""
    return bool(files) and all(len(parts) > 1 for parts in files)
