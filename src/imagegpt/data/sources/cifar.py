"""CIFAR-10 and CIFAR-100 as published by their authors: the binary version and the Python version.

Both store 32 x 32 pixels as 3,072 bytes: all red values row by row, then all green, then all blue. In the binary
version the label comes first (CIFAR-100: the coarse, then the fine one); its files are memory-mapped. The Python
version is a pickled dictionary of Python 2. Unpickling can run any code, so `cifar_pickle` reads these files and runs
none.

Axis letters: N images.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from imagegpt.data.sources.base import Example, ImageSource, SourceFormat, in_one_line
from imagegpt.data.sources.cifar_pickle import read_pickle

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

_PIXELS = 3 * 32 * 32
_BATCH = re.compile(r"(data_batch_\d+|test_batch)(\.bin)?")
_WHOLE = re.compile(r"(train|test)(\.bin)?")
_NUM_CLASSES = {1: 10, 2: 100}  # by the number of label bytes in the binary version


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """The images of a file and their labels."""

    pixels: UInt8[np.ndarray, "n 3072"]
    labels: Int64[np.ndarray, " n"]


class CifarSource(ImageSource):
    """The images of one or more CIFAR files.

    Args:
        files: all of the binary version, or all of the Python version.
        name: as the user calls the source.
        split: "train" or "test", None for a single file.
    Raises: ValueError if a file is damaged.
    """

    def __init__(self, files: Sequence[Path], name: str, split: str | None = None) -> None:
        self._files, self.name, self.split = list(files), name, split
        self._batches = [_binary(path) if path.suffix == ".bin" else _pickled(path) for path in files]
        self._ends = np.cumsum([len(batch.labels) for batch in self._batches])
        self._labels = np.concatenate([batch.labels for batch in self._batches])
        self.classes = _class_names(self._files[0], int(self._labels.max()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._files, self.name, self.split)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _read(self, index: int) -> Example:
        place = int(np.searchsorted(self._ends, index, side="right"))
        batch = self._batches[place]
        row = index - (int(self._ends[place - 1]) if place else 0)
        image = np.ascontiguousarray(batch.pixels[row].reshape(3, 32, 32).transpose(1, 2, 0))
        return Example(image=image, label=self._label(index), name=f"{self._files[place].name}[{row}]")

    def files(self) -> Iterable[Path]:
        """See `ImageSource`."""
        return self._files


def cifar_splits(folder: Path) -> dict[str, list[Path]]:
    """Find the files of each split in a folder of CIFAR files."""
    found: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.iterdir() if is_cifar_file(path)):
        found.setdefault("test" if path.name.startswith("test") else "train", []).append(path)
    kinds = {path.suffix for files in found.values() for path in files}
    if len(kinds) > 1:
        raise ValueError(f"{folder} holds both binary and Python files of CIFAR: keep one of the two versions there")
    return found


def is_cifar_file(path: Path) -> bool:
    """Return whether a file has the name of a CIFAR file."""
    return bool(_BATCH.fullmatch(path.name) or _WHOLE.fullmatch(path.name)) and path.is_file()


class CifarFormat(SourceFormat):
    """A file of CIFAR-10 or CIFAR-100, or a folder of such files."""

    description = "a file or folder of CIFAR-10 or CIFAR-100"

    def matches(self, location: str) -> bool:
        """See `SourceFormat`."""
        path = Path(location)
        if path.is_dir():
            return any(map(is_cifar_file, path.iterdir()))
        return is_cifar_file(path) or (path.suffix.lower() == ".bin" and path.is_file())

    def splits(self, location: str) -> list[str]:
        """See `SourceFormat`."""
        return list(cifar_splits(Path(location))) if Path(location).is_dir() else []

    def open(self, location: str, split: str | None) -> CifarSource:
        """See `SourceFormat`."""
        path = Path(location)
        return CifarSource([path] if split is None else cifar_splits(path)[split], location, split)


def _binary(path: Path) -> _Batch:
    size = path.stat().st_size
    fitting = [labels for labels in _NUM_CLASSES if size and size % (labels + _PIXELS) == 0]
    if not fitting:
        raise ValueError(
            f"{path} has {size:,} bytes: images of CIFAR-10 have {1 + _PIXELS} each, of CIFAR-100 {2 + _PIXELS}; "
            "get the file again"
        )
    # A multiple of 3,073 x 3,074 bytes fits both: then the name decides.
    num_labels = fitting[0] if len(fitting) == 1 else 1 + bool(_WHOLE.fullmatch(path.name))
    records = np.memmap(path, np.uint8, "r").reshape(-1, num_labels + _PIXELS)
    labels = records[:, num_labels - 1].astype(np.int64)
    _check_labels(path, labels, _NUM_CLASSES[num_labels])
    return _Batch(pixels=records[:, num_labels:], labels=labels)


def _pickled(path: Path) -> _Batch:
    content = _unpickle(path)
    pixels, listed = content.get("data"), content.get("labels", content.get("fine_labels"))
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (_PIXELS,):
        raise ValueError(f"{path} has no data of uint8 (images, {_PIXELS}): it is not a CIFAR file, get it again")
    listed = listed if isinstance(listed, list) and all(type(label) is int for label in listed) else []
    if len(listed) != len(pixels) or not len(pixels):
        raise ValueError(f"{path} does not have one label for each of its {len(pixels)} images: get the file again")
    labels = np.asarray(listed, np.int64)
    _check_labels(path, labels, 100)
    return _Batch(pixels=pixels, labels=labels)


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        content = read_pickle(path.read_bytes())
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a CIFAR pickle ({in_one_line(error)}): get the file again") from error
    return content


def _check_labels(path: Path, labels: Int64[np.ndarray, " n"], num_classes: int) -> None:
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels in {path} run from {labels.min()} to {labels.max()}, {num_classes} classes are 0 to "
            f"{num_classes - 1}: the file is damaged or not a CIFAR file, get it again"
        )


def _class_names(file: Path, largest_label: int) -> list[str] | None:
    """Read the class names from the files beside `file`; without them use CIFAR-10's; None if there are too few."""
    folder = file.parent
    for text in (folder / "batches.meta.txt", folder / "fine_label_names.txt"):
        if file.suffix == ".bin" and text.is_file():
            names = text.read_text(encoding="utf-8").split()
            break
    else:
        names = _names_in_pickle(folder) if file.suffix != ".bin" else []
    if not names and _BATCH.fullmatch(file.name):
        names = CIFAR10_CLASSES
    return names if largest_label < len(names) else None


def _names_in_pickle(folder: Path) -> list[str]:
    for name, key in (("batches.meta", "label_names"), ("meta", "fine_label_names")):
        if (folder / name).is_file():
            names = _unpickle(folder / name).get(key)
            if not isinstance(names, list) or not all(isinstance(one, (str, bytes)) for one in names):
                raise ValueError(f"{folder / name} has no list {key} of class names: get the file again")
            return [one.decode("latin-1") if isinstance(one, bytes) else one for one in names]
    return []
