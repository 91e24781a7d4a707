"""Images as numpy arrays: .npy and .npz files.

Arrays are memory-mapped wherever the file allows it: .npy always, .npz if it is not compressed (np.savez). An array in
a compressed .npz is read as a whole.

Axis letters: N images, H height, W width, C channels.
"""

import math
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Int64, UInt8

from imagegpt.common.memory import check_memory
from imagegpt.common.text import printable, truncate
from imagegpt.data.sources.base import Example, ImageSource, SourceFormat, in_one_line
from imagegpt.data.splits import canonical

IMAGE_KEYS = ("images", "x", "data")
LABEL_KEYS = ("labels", "y")

_SUFFIXES = (".npy", ".npz")
_LOCAL_HEADER = 30  # bytes before a member's name in a zip; the last four are the lengths of name and extra field


class ArraySource(ImageSource):
    """The images of a .npy or .npz file.

    A .npy file holds the images; a .npz file holds them as `images`, `x` or `data`, and optionally their labels as
    `labels` or `y`. Images are uint8 (N, H, W) or (N, H, W, C), C = 1, 3 or 4; labels are integers (N,) from 0, or -1
    for images without one.

    Args:
        path: of the file.
        name: as the user calls the source.
        split: which of its splits this is, None if it has none.
    Raises: ValueError if the file is damaged or holds something else.
    """

    def __init__(self, path: Path, name: str, split: str | None = None) -> None:
        self.path, self.name, self.split = path, name, split
        try:
            images, labels = _mapped_npy(path) if path.suffix.lower() == ".npy" else _from_npz(path)
        except _WrongKeysError:
            raise
        except Exception as error:  # numpy, zipfile and zlib raise errors of many types
            raise ValueError(
                f"{path} is no readable {path.suffix} file ({in_one_line(error)}): save it again"
            ) from error
        _check_images(path, images)
        self.images = images
        self._labels = None if labels is None else _checked_labels(path, labels, len(images))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.name, self.split)

    def __len__(self) -> int:
        return len(self.images)

    def _read(self, index: int) -> Example:
        image = np.asarray(self.images[index])
        return Example(image=image, label=self._label(index), name=f"{self.path.name}[{index}]")

    def files(self) -> Iterable[Path]:
        """See `ImageSource`."""
        return (self.path,)


class _WrongKeysError(ValueError):
    """A .npz file without images."""


def _mapped_npy(path: Path) -> tuple[np.ndarray, None]:
    return np.lib.format.open_memmap(path, mode="r"), None


def _from_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        image_key = next((key for key in IMAGE_KEYS if key in members), None)
        label_key = next((key for key in LABEL_KEYS if key in members), None)
        if image_key is None:
            held = truncate(printable(", ".join(members)), 80) or "nothing"
            raise _WrongKeysError(f"{path} holds {held}: name the array of images {', '.join(IMAGE_KEYS[:-1])} or data")
        images = _member(path, archive, members[image_key])
        return images, None if label_key is None else _member(path, archive, members[label_key])


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Return an array in a zip: memory-mapped if it is not compressed, read otherwise."""
    if info.compress_type != zipfile.ZIP_STORED:
        with archive.open(info) as file:
            shape, _, dtype = _array_header(file)
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes > info.file_size:
            raise ValueError(f"{info.filename} has {info.file_size:,} bytes and says it had {num_bytes:,}")
        check_memory(f"reading {info.filename}", 2 * num_bytes, "save it with np.savez, which does not compress it")
        with archive.open(info) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    with path.open("rb") as file:
        file.seek(info.header_offset)
        name_length, extra_length = struct.unpack("<HH", file.read(_LOCAL_HEADER)[-4:])
        file.seek(name_length + extra_length, 1)
        shape, fortran, dtype = _array_header(file)
        offset = file.tell()
    if dtype.hasobject:
        raise ValueError("it holds Python objects, not numbers")
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")


def _array_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _check_images(path: Path, images: UInt8[np.ndarray, "..."]) -> None:
    if images.dtype != np.uint8:
        raise ValueError(f"the images in {path} are {images.dtype}: they must be uint8, 0 to 255")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
        raise ValueError(
            f"the images in {path} have shape {images.shape}: it must be (images, height, width), "
            "or have 1, 3 or 4 channels as a fourth axis"
        )
    if not images.size:
        raise ValueError(f"the images in {path} have shape {images.shape}: there must be at least one, with pixels")


def _checked_labels(path: Path, labels: np.ndarray, num_images: int) -> Int64[np.ndarray, " n"]:
    if labels.shape != (num_images,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"the labels in {path} are {labels.dtype} {labels.shape}: there must be one integer for each of its "
            f"{num_images} images"
        )
    values = np.asarray(labels).astype(np.int64)
    if values.min() < -1:
        raise ValueError(f"a label in {path} is {values.min()}: labels count from 0, and -1 is for images without one")
    return values


class ArrayFormat(SourceFormat):
    """A .npy or .npz file, or a folder of such files that are named after splits."""

    description = "a .npy or .npz file, or a folder with train.npz and such"

    def matches(self, location: str) -> bool:
        """See `SourceFormat`."""
        path = Path(location)
        return _is_array_file(path) or (path.is_dir() and bool(_array_splits(path)))

    def splits(self, location: str) -> list[str]:
        """See `SourceFormat`."""
        return [] if Path(location).is_file() else list(_array_splits(Path(location)))

    def open(self, location: str, split: str | None) -> ArraySource:
        """See `SourceFormat`."""
        path = Path(location)
        return ArraySource(path if split is None else _array_splits(path)[split], location, split)


def _is_array_file(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and path.is_file()


def _array_splits(folder: Path) -> dict[str, Path]:
    """Find the array files of a folder that are named after a split."""
    found: dict[str, Path] = {}
    for path in sorted(filter(_is_array_file, folder.iterdir())):
        split = canonical(path.stem)
        if split in found:
            raise ValueError(f"{found[split]} and {path.name} are both the {split} split: keep one of them")
        if split is not None:
            found[split] = path
    return found
