"""From what a user says to pictures: which kind of source it is, and opening it."""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from imagegpt.data.sources import arrays, cifar, folders, idx, tables
from imagegpt.data.sources.base import Example, ImageSource, name_of
from imagegpt.data.sources.file_listing import has_images
from imagegpt.data.splits import canonical, choose_split, in_order
from imagegpt.files.paths import expand_home

__all__ = ["Example", "ImageSource", "list_splits", "open_images"]

_BUNDLED = "digits"
_ARRAYS = (".npy", ".npz")
_FILES = (*_ARRAYS, ".parquet", ".bin", ".png", ".jpg", ".jpeg", ".zip")  # no name on the hub ends so
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_KINDS = (
    "a folder of images, a .npy, .npz, .parquet, CIFAR or IDX (MNIST) file, a folder of those or of datasets' "
    "save_to_disk, owner/name on the hub, or digits"
)


def open_images(src: str | os.PathLike[str], *, split: str | None = None) -> ImageSource:
    """Open pictures.

    Args:
        src: a folder of image files, with a subfolder for each class or without, and with folders `train`,
            `validation` and `test` or without, which may have other usual names, see `layouts`; a .npy or .npz file of
            uint8 images, or a folder with `train.npz` and such; .parquet, as on the hub, or a folder of it; a folder of
            `datasets`' save_to_disk; a file or folder of CIFAR-10 or CIFAR-100, binary or pickled, or of IDX files, as
            MNIST; "digits", scikit-learn's; or a data set on the hub, "owner/name". Looked for in this order: "digits",
            a path, the hub.
        split: which part, if it has parts.
    Raises: ValueError, FileNotFoundError or ConnectionError, in one sentence, if there is no such source, it is
        damaged, or the split is not as it should be.
    """
    kind = _recognised(src)
    return kind.open(choose_split(kind.name, kind.splits, split))


def list_splits(src: str | os.PathLike[str]) -> list[str]:
    """The parts of a source: train, validation, test, then others; none if it is a single one.

    Raises: as `open_images`.
    """
    return in_order(_recognised(src).splits)


class DigitsSource(ImageSource):
    """scikit-learn's handwritten digits, 8 x 8 grey pixels: their 17 levels spread over 0 to 255, as in the palette."""

    def __init__(self, split: str) -> None:
        from imagegpt.data.sources.digits import load_digits

        self.name, self.split, self.classes = _BUNDLED, split, [str(digit) for digit in range(10)]
        data = load_digits()
        part = {"train": data.train, "validation": data.validation, "test": data.test}[split]
        side = data.side
        self._images = data.palette.decode(part.ids.numpy()).reshape(-1, side, side, 3)[..., 0].astype(np.uint8)
        self._labels, self._indices = part.labels.tolist(), part.indices.tolist()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.split,)

    def __len__(self) -> int:
        return len(self._images)

    def _read(self, index: int) -> Example:
        name = f"digit {self._indices[index]}"
        return Example(image=self._images[index], label=self._labels[index], name=name)

    def files(self) -> Iterable[Path]:
        """None: they come with a library."""
        return ()

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """See `ImageSource`."""
        return np.array(self._labels, np.int64)


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """What a source was found to be."""

    name: str
    splits: list[str]
    open: Callable[[str | None], ImageSource]


def _recognised(src: str | os.PathLike[str]) -> _Kind:
    """Find out what a source is, without reading its pictures."""
    name = name_of(src)
    if name == _BUNDLED:
        splits = ["train", "validation", "test"]
        return _Kind(name=name, splits=splits, open=lambda split: DigitsSource(str(split)))
    path = Path(expand_home(name))
    if name and path.is_dir():
        return _recognised_folder(path, name)
    if name and path.is_file():
        return _recognised_file(path, name)
    is_path = path.is_absolute() or name.startswith(("./", "../", "~")) or not isinstance(src, str)
    is_path |= bool(path.parts[1:]) and Path(path.parts[0]).exists()  # photos/traim beside photos/train
    if not is_path and _HUB_NAME.fullmatch(name) and ".." not in name and path.suffix.lower() not in _FILES:
        return _Kind(name=name, splits=tables.hub_splits(name), open=lambda split: tables.open_hub(name, str(split)))
    raise FileNotFoundError(f"{name!r} does not exist: check the path, or give {_KINDS}")


def _recognised_file(path: Path, name: str) -> _Kind:
    suffix = path.suffix.lower()
    if suffix in _ARRAYS:
        return _Kind(name=name, splits=[], open=lambda _: arrays.ArraySource(path, name))
    if suffix == ".parquet":
        return _Kind(name=name, splits=[], open=lambda _: tables.open_parquet([path], name, None))
    if suffix == ".bin" or cifar.is_cifar_file(path):
        return _Kind(name=name, splits=[], open=lambda _: cifar.CifarSource([path], name))
    if idx.is_idx_file(path):
        return _Kind(name=name, splits=[], open=lambda _: idx.IdxSource(path, name))
    raise ValueError(f"{name} is a file of no kind that holds many images: give {_KINDS}")


def _recognised_folder(folder: Path, name: str) -> _Kind:
    if (folder / "encoding.json").is_file():
        raise ValueError(f"{name} holds images that are encoded already: give the source they came from")
    if (folder / tables.SPLITS_FILE).is_file() or (folder / tables.STATE_FILE).is_file():
        splits = tables.saved_splits(folder)
        if any((folder / split / "encoding.json").is_file() for split in splits):
            raise ValueError(f"{name} holds images that are encoded already: give the source they came from")
        return _Kind(name=name, splits=splits, open=lambda split: tables.open_saved(folder, name, split))
    if files := cifar.cifar_splits(folder):
        return _Kind(
            name=name, splits=list(files), open=lambda split: cifar.CifarSource(files[str(split)], name, split)
        )
    if images := idx.idx_splits(folder, name):
        return _Kind(name=name, splits=list(images), open=lambda split: idx.IdxSource(images[str(split)], name, split))
    if has_images(folder):
        splits = folders.folder_splits(folder, name)
        return _Kind(name=name, splits=splits, open=lambda split: folders.open_folder(folder, name, split))
    if parquet := tables.parquet_splits(folder):
        return _Kind(
            name=name,
            splits=[split for split in parquet if split is not None],
            open=lambda split: tables.open_parquet(parquet[split], name, split),
        )
    if found := _array_splits(folder):
        return _Kind(
            name=name, splits=list(found), open=lambda split: arrays.ArraySource(found[str(split)], name, split)
        )
    raise ValueError(f"{name} holds no images: give {_KINDS}")


def _array_splits(folder: Path) -> dict[str, Path]:
    """The array files of a folder that are called after a split."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        meaning = canonical(path.stem) if path.suffix.lower() in _ARRAYS else None
        if meaning in found:
            raise ValueError(f"{found[meaning]} and {path.name} mean the same split: keep one of them")
        if meaning is not None:
            found[meaning] = path
    return found
