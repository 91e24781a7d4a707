"""IDX files, the format of MNIST, Fashion-MNIST and similar data sets: `train-images-idx3-ubyte`, often with `.gz`.

One file holds 8-bit grey images, another their labels; its name has "labels" for "images" and "idx1" for "idx3". Files
are memory-mapped; compressed ones are read as a whole, after a check that their size is plausible.

Source: https://yann.lecun.org/exdb/mnist, "the IDX file format".

Axis letters: N images, H height, W width.
"""

import gzip
import re
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from imagegpt.data.sources.base import Example, ImageSource, SourceFormat, in_one_line
from imagegpt.data.splits import canonical, in_order, words_of

_NAME = re.compile(r"(.*?)[-_.]?images[-_.]idx3[-_.]ubyte(\.gz)?")
_UNSIGNED_BYTES = 8  # the code of the data type, in the third byte
_MAX_COMPRESSION = 1032  # deflate's: one byte expands to so many at most


class IdxSource(ImageSource):
    """The images of an IDX file, with their labels if there is a file of labels beside it.

    Args:
        path: of the images.
        name: as the user calls the source.
        split: which of its splits this is; None for a single file.
    Raises: ValueError if a file is damaged, or the two do not match.
    """

    def __init__(self, path: Path, name: str, split: str | None = None) -> None:
        self.path, self.name, self.split = path, name, split
        self._images = _values(path, 3)
        if not self._images.size:
            raise ValueError(f"{path} holds {_shape_of(self._images)} pixels: there must be at least one image of one")
        self._label_path = labels_beside(path)
        if self._label_path is not None:
            labels = _values(self._label_path, 1)
            if len(labels) != len(self._images):
                raise ValueError(
                    f"{self._label_path} has {len(labels):,} labels and {path} {len(self._images):,} images: "
                    "get both files again"
                )
            self._labels = labels.astype(np.int64)
            self.classes = [str(number) for number in range(int(labels.max()) + 1)]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.name, self.split)

    def __len__(self) -> int:
        return len(self._images)

    def _read(self, index: int) -> Example:
        image = np.asarray(self._images[index])
        return Example(image=image, label=self._label(index), name=f"{self.path.name}[{index}]")

    def files(self) -> Iterable[Path]:
        """See `ImageSource`."""
        return (self.path,) if self._label_path is None else (self.path, self._label_path)


def is_idx_file(path: Path) -> bool:
    """Return whether a file has the name of an IDX file of images."""
    return _NAME.fullmatch(path.name) is not None and path.is_file()


def labels_beside(path: Path) -> Path | None:
    """Find the file with the labels of an image file, compressed or not; None if there is none."""
    plain = path.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    found = (path.with_name(name) for name in (plain, f"{plain}.gz"))
    return next((candidate for candidate in found if candidate.is_file()), None)


def idx_splits(folder: Path, name: str) -> dict[str, Path]:
    """Find the IDX files of images in a folder, by their split.

    Args:
        folder: to search.
        name: as the user calls it.
    Raises: ValueError if the name of a file does not say which split it is, or two files are the same split.
    """
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if is_idx_file(path)):
        prefix = re.sub(r"\bt10k\b", "test", path.name.split("images")[0])  # MNIST's 10,000 images for testing
        meanings = {meaning for word in words_of(prefix) if (meaning := canonical(word)) is not None}
        split = meanings.pop() if len(meanings) == 1 else None
        if split is None:
            raise ValueError(f"{path} is of no split: name it as MNIST names its files, such as train-{path.name}")
        other = found.setdefault(split, path)
        if other != path and other.name.removesuffix(".gz") != path.name.removesuffix(".gz"):
            raise ValueError(f"{name} has {other.name} and {path.name} for the same split: move one of them away")
    return {split: found[split] for split in in_order(found)}


class IdxFormat(SourceFormat):
    """An IDX file of images, or a folder of such files, one for each split."""

    description = "a file or folder of IDX files, as MNIST"

    def matches(self, location: str) -> bool:
        """See `SourceFormat`."""
        path = Path(location)
        return is_idx_file(path) or (path.is_dir() and any(map(is_idx_file, path.iterdir())))

    def splits(self, location: str) -> list[str]:
        """See `SourceFormat`."""
        return list(idx_splits(Path(location), location)) if Path(location).is_dir() else []

    def open(self, location: str, split: str | None) -> IdxSource:
        """See `SourceFormat`."""
        path = Path(location)
        return IdxSource(path if split is None else idx_splits(path, location)[split], location, split)


def _values(path: Path, num_axes: int) -> UInt8[np.ndarray, "..."]:
    """Read a file of unsigned bytes with `num_axes` axes.

    Raises: ValueError if it is damaged or holds something else.
    """
    start = 4 + 4 * num_axes
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(start)
            zeros, kind, axes, *shape = struct.unpack(f">HBB{num_axes}I", header)
            if (zeros, kind, axes) != (0, _UNSIGNED_BYTES, num_axes):
                raise ValueError(f"it does not hold bytes with {num_axes} axes")
            size = int(np.prod(shape, dtype=object))
            there, is_packed = path.stat().st_size, path.suffix == ".gz"
            if size > there * _MAX_COMPRESSION or (not is_packed and there != start + size):
                raise ValueError(f"its {there:,} bytes cannot be the {size:,} values that it declares")
            if not is_packed:
                return np.memmap(path, np.uint8, "r", start, tuple(shape)) if size else np.empty(shape, np.uint8)
            content = file.read(size + 1)
            if len(content) != size:
                raise ValueError(f"it holds {'more' if len(content) > size else 'fewer'} values than it declares")
    except (EOFError, struct.error, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise ValueError(f"{path} is no readable IDX file ({in_one_line(error)}): get the file again") from error
    return np.frombuffer(content, np.uint8).reshape(shape)


def _shape_of(images: np.ndarray) -> str:
    return " x ".join(map(str, images.shape))
