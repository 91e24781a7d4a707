"""IDX files, as MNIST, Fashion-MNIST and their kin are published: `train-images-idx3-ubyte`, often with `.gz`.

Eight-bit grey images in one file, their classes in another whose name says "labels" in place of "images" and "idx1" in
place of "idx3". Files are mapped; compressed ones are read as a whole, once their size is known to be plausible.

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
from jaxtyping import Int64, UInt8

from imagegpt.data.sources.base import UNLABELED, Example, ImageSource, in_one_line
from imagegpt.data.splits import canonical, in_order, words_of

_NAME = re.compile(r"(.*?)[-_.]?images[-_.]idx3[-_.]ubyte(\.gz)?")
_UNSIGNED_BYTES = 8  # the type of the values, in the third byte
_MOST_COMPRESSED = 1032  # bytes that one byte of deflate's can become


class IdxSource(ImageSource):
    """The images of an IDX file, with their classes if these lie beside it.

    Args:
        path: of the images.
        name: what the user called the source.
        split: which of its splits this is, None for a single file.
    Raises: ValueError if a file is damaged, or the two do not belong together.
    """

    def __init__(self, path: Path, name: str, split: str | None = None) -> None:
        self.path, self.name, self.split, self.classes = path, name, split, None
        self._images, self._labels = _values(path, 3), None
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
        label = None if self._labels is None else int(self._labels[index])
        return Example(image=np.asarray(self._images[index]), label=label, name=f"{self.path.name}[{index}]")

    def files(self) -> Iterable[Path]:
        """See `ImageSource`."""
        return (self.path,) if self._label_path is None else (self.path, self._label_path)

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """See `ImageSource`."""
        return np.full(len(self), UNLABELED, np.int64) if self._labels is None else self._labels


def is_idx_file(path: Path) -> bool:
    """Whether a file is called like an IDX file of images."""
    return _NAME.fullmatch(path.name) is not None and path.is_file()


def labels_beside(path: Path) -> Path | None:
    """The file with the classes of the images in another, compressed or not; None if there is none."""
    plain = path.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    found = (path.with_name(name) for name in (plain, f"{plain}.gz"))
    return next((candidate for candidate in found if candidate.is_file()), None)


def idx_splits(folder: Path, name: str) -> dict[str, Path]:
    """The IDX files of images in a folder, by their split; none if there are none.

    Args:
        folder: where they are.
        name: what the user called it.
    Raises: ValueError if it cannot be told which split one is, or two are the same.
    """
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if is_idx_file(path)):
        prefix = re.sub(r"\bt10k\b", "test", path.name.split("images")[0])  # MNIST's 10,000 images for testing
        meanings = {meaning for word in words_of(prefix) if (meaning := canonical(word)) is not None}
        split = meanings.pop() if len(meanings) == 1 else None
        if split is None:
            raise ValueError(f"{path} is of no split: call it as MNIST's files are, such as train-{path.name}")
        other = found.setdefault(split, path)
        if other != path and other.name.removesuffix(".gz") != path.name.removesuffix(".gz"):
            raise ValueError(f"{name} has {other.name} and {path.name} for the same split: move one of them away")
    return {split: found[split] for split in in_order(found)}


def _values(path: Path, num_axes: int) -> UInt8[np.ndarray, "..."]:
    """The values of a file, which must be bytes with so many axes, and nothing else.

    Raises: ValueError if it is damaged or holds something else.
    """
    start = 4 + 4 * num_axes
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(start)
            zeros, kind, axes, *shape = struct.unpack(f">HBB{num_axes}I", header)
            if (zeros, kind, axes) != (0, _UNSIGNED_BYTES, num_axes):
                raise ValueError(f"it holds no bytes of {num_axes} axes")
            size = int(np.prod(shape, dtype=object))
            there, is_packed = path.stat().st_size, path.suffix == ".gz"
            if size > there * _MOST_COMPRESSED or (not is_packed and there != start + size):
                raise ValueError(f"its {there:,} bytes cannot be the {size:,} values that it announces")
            if not is_packed:
                return np.memmap(path, np.uint8, "r", start, tuple(shape)) if size else np.empty(shape, np.uint8)
            content = file.read(size + 1)
            if len(content) != size:
                raise ValueError(f"it holds {'more' if len(content) > size else 'fewer'} values than it announces")
    except (EOFError, struct.error, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise ValueError(f"{path} is no readable IDX file ({in_one_line(error)}): get the file again") from error
    return np.frombuffer(content, np.uint8).reshape(shape)


def _shape_of(images: np.ndarray) -> str:
    return " x ".join(map(str, images.shape))
