"""TensorFlow checkpoints ("tensor bundles") without TensorFlow: PREFIX.index, and PREFIX.data-00000-of-00032 ...

The index is a LevelDB table (`leveldb`) of protocol buffers (`protobuf`, `bundle_index`): dtype, shape, location and
checksum of each variable. The data files contain the variables' bytes.

Source: TensorFlow's core/util/tensor_bundle.
"""

import math
import mmap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from imagegpt.checkpoints.bundle_index import (
    DTYPE_IDS,
    BundleEntry,
    assign_shards,
    check_no_overlap,
    numpy_dtype,
    parse_entry,
    parse_header,
    write_entry,
    write_header,
)
from imagegpt.checkpoints.leveldb import masked_crc32c, read_table, write_table
from imagegpt.common import ranges
from imagegpt.files.atomic import temporary_path

_MAX_INDEX_BYTES = 64 * 2**20  # the index of a model with a thousand variables has 50 kB


class DamagedFileError(ValueError):
    """Raised for a data file that is cut short, or whose checksum is wrong.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path


class TensorBundle(Mapping[str, np.ndarray]):
    """The variables of a checkpoint by name, read and verified on access.

    An array is a read-only view of the memory-mapped file.

    Args:
        entries: of the index, by name.
        is_big_endian: byte order of the data files.
        locate: maps the default path of a data file to its actual path.
    """

    def __init__(
        self,
        prefix: Path,
        entries: Mapping[str, BundleEntry],
        num_shards: int,
        is_big_endian: bool,
        locate: Callable[[Path], Path] = lambda path: path,
    ) -> None:
        self.prefix, self.num_shards, self._locate = prefix, num_shards, locate
        self._entries, self._is_big_endian = entries, is_big_endian
        self._files: dict[int, mmap.mmap | bytes] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __getitem__(self, name: str) -> np.ndarray:
        """Read a variable.

        Raises: KeyError if there is none of this name; ValueError or OSError, in one sentence, if it is damaged, cut
            short, or not numeric.
        """
        entry = self.entry(name)
        if entry.dtype is None:
            raise ValueError(f"{name} of {self.prefix} is not numeric: leave it out")
        path, file = self._path(entry.shard), self._map_file(entry.shard)
        if entry.offset + entry.size > len(file):
            raise DamagedFileError(
                path,
                f"{path} has {len(file):,} bytes, but {name} ends at {entry.offset + entry.size:,}: it is cut "
                "short, get the file again",
            )
        with memoryview(file) as content, content[entry.offset : entry.offset + entry.size] as data:
            if masked_crc32c(data) != entry.checksum:
                raise DamagedFileError(
                    path, f"the checksum of {name} in {path} is wrong: it is damaged, get the file again"
                )
        dtype = numpy_dtype(entry.dtype)
        stored_dtype = dtype.newbyteorder(">") if self._is_big_endian else dtype
        count = math.prod(entry.shape)
        array = np.frombuffer(file, stored_dtype, count, entry.offset) if count else np.empty(0, dtype)
        if not array.flags.aligned or stored_dtype != dtype:
            array = array.astype(dtype)
        return array.reshape(entry.shape)

    def entry(self, name: str) -> BundleEntry:
        """Return the index entry of a variable.

        Raises: KeyError if there is none of this name.
        """
        return self._entries[name]

    def min_data_sizes(self) -> list[int]:
        """Return the bytes of each data file up to the end of its last variable."""
        ends = [0] * self.num_shards
        for entry in self._entries.values():
            ends[entry.shard] = max(ends[entry.shard], entry.offset + entry.size)
        return ends

    def _path(self, shard: int) -> Path:
        return self._locate(shard_path(self.prefix, shard, self.num_shards))

    def _map_file(self, shard: int) -> mmap.mmap | bytes:
        if shard not in self._files:
            path = self._path(shard)
            try:
                with path.open("rb") as file:
                    is_empty = not path.stat().st_size  # mmap refuses empty files
                    self._files[shard] = b"" if is_empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"{path} is missing, one of the {self.num_shards} data files of {self.prefix}.index: get it too"
                ) from error
        return self._files[shard]


def read_bundle(prefix: str | Path, *, locate: Callable[[Path], Path] = lambda path: path) -> TensorBundle:
    """Open a TensorFlow checkpoint.

    Args:
        prefix: the path with or without `.index`.
        locate: maps the default path of a data file to its actual path.
    Returns: a mapping of names to arrays, which are read on access.
    Raises: FileNotFoundError if there is none; ValueError, in one sentence, if its index is damaged.
    """
    prefix = Path(str(prefix).removesuffix(".index"))
    path = index_path(prefix)
    if not path.is_file():
        raise FileNotFoundError(f"there is no TensorFlow checkpoint {prefix}: {path.name} is missing")
    try:
        if path.stat().st_size > _MAX_INDEX_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, more than {_MAX_INDEX_BYTES:,}")
        table = read_table(path.read_bytes())
        num_shards, is_big_endian = parse_header(table.pop(b"", b""))
        entries = [parse_entry(key, value, num_shards) for key, value in table.items()]
        check_no_overlap(entries)
    except ValueError as error:
        raise ValueError(f"{path} is not the index of a TensorFlow checkpoint, or is damaged ({error})") from error
    return TensorBundle(prefix, {entry.name: entry for entry in entries}, num_shards, is_big_endian, locate)


def write_bundle(prefix: str | Path, arrays: Mapping[str, np.ndarray], num_shards: int = 1) -> None:
    """Write a checkpoint that TensorFlow can read. Each file is written atomically, the index last.

    Args:
        prefix: the path without `.index`; its folder must exist.
        arrays: by name, numeric.
        num_shards: number of data files; each array is in one of them.
    Raises: ValueError for other dtypes, invalid names or an invalid number of files; OSError if it cannot be written.
    """
    prefix = Path(prefix)
    num_shards = ranges.SHARD_FILES.check("num_shards", num_shards)
    for name, array in arrays.items():
        if array.dtype.name not in DTYPE_IDS:
            raise ValueError(f"{name} is of type {array.dtype}: TensorFlow checkpoints support {', '.join(DTYPE_IDS)}")
        if not name or "\0" in name:
            raise ValueError(f"{name!r} is not a valid name for a variable")
    entries: dict[bytes, bytes] = {b"": write_header(num_shards)}
    temporary: dict[Path, Path] = {}
    try:
        for shard, names in enumerate(assign_shards(arrays, num_shards)):
            path = shard_path(prefix, shard, num_shards)
            temporary[path] = temporary_path(path)
            with temporary[path].open("wb") as file:
                for name in names:
                    entries[name.encode()] = _write_array(file, shard, np.asarray(arrays[name]))
        path = index_path(prefix)
        temporary[path] = temporary_path(path)
        temporary[path].write_bytes(write_table(entries))
        for path, written in temporary.items():
            written.replace(path)
    finally:
        for written in temporary.values():
            written.unlink(missing_ok=True)


def index_path(prefix: Path) -> Path:
    """Return the path of a checkpoint's index."""
    return prefix.with_name(f"{prefix.name}.index")


def shard_path(prefix: Path, shard: int, num_shards: int) -> Path:
    """Return the path of a checkpoint's data file."""
    return prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{num_shards:05d}")


def _write_array(file: BinaryIO, shard: int, array: np.ndarray) -> bytes:
    """Write an array's bytes; return its index entry."""
    offset = file.tell()
    little_endian = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    content = little_endian.reshape(-1).view(np.uint8).data
    file.write(content)
    return write_entry(array, shard=shard, offset=offset, size=len(content), checksum=masked_crc32c(content))
