"""The index of a TensorFlow checkpoint: parsing and writing of its header and entries.

The index maps the empty key to a `BundleHeaderProto` (number of data files, byte order), and each variable's name to a
`BundleEntryProto` (dtype, shape, shard, offset, size, checksum). A variable saved in slices has an entry that lists
them, and one more entry per slice, whose key `slice_names` encodes.

Source: TensorFlow's core/protobuf/tensor_bundle.proto, core/framework/tensor_{shape,slice}.proto.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from imagegpt.checkpoints.protobuf import fixed32, read_fields, to_signed, write_fields
from imagegpt.common import ranges

_DTYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 8: "complex64", 9: "int64", 10: "bool",
    14: "bfloat16", 17: "uint16", 18: "complex128", 19: "float16", 22: "uint32", 23: "uint64",
}  # fmt: skip
DTYPE_IDS = {name: number for number, name in _DTYPES.items()}
_STRING = 7
_MAX_AXES = 32  # about numpy's limit
_MAX_SLICES = 1000  # per variable; all pairs are compared
_FULL_EXTENT = -1  # length of an axis that a slice covers completely

TensorSlice = tuple[tuple[int, int], ...]  # (start, length) on each axis


@dataclass(frozen=True, kw_only=True)
class BundleEntry:
    """A variable, or a slice of one, as the index describes it.

    Attributes:
        name: of the variable; the encoded key of a slice.
        dtype: numpy's name, or bfloat16; None for strings and other types that are not numeric.
        shape: of the array.
        shard: index of its data file.
        offset: in bytes, in the file.
        size: in bytes.
        checksum: masked CRC-32C of the bytes.
        slices: of a variable that was saved in slices; its shard, offset, size and checksum are unused.
    """

    name: str
    dtype: str | None
    shape: tuple[int, ...]
    shard: int = 0
    offset: int = 0
    size: int = 0
    checksum: int = 0
    slices: tuple[TensorSlice, ...] = field(default=())

    @property
    def nbytes(self) -> int:
        """Bytes of the array; of types that are not numeric, the stored size."""
        return self.size if self.dtype is None else math.prod(self.shape) * numpy_dtype(self.dtype).itemsize


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return numpy's dtype of a name; bfloat16 is that of ml_dtypes.

    Raises: ValueError if ml_dtypes is needed and not installed.
    """
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise ValueError("bfloat16 needs the library ml_dtypes: pip install 'imagegpt[openai]'") from error
    return np.dtype(ml_dtypes.bfloat16)


def parse_header(message: bytes) -> tuple[int, bool]:
    """Return the number of data files, and whether numbers are big-endian.

    Raises: ValueError if it is damaged.
    """
    fields = dict(read_fields(message))
    num_shards, byte_order = fields.get(1, 0), fields.get(2, 0)
    if not isinstance(num_shards, int) or not 1 <= num_shards <= ranges.SHARD_FILES.max:
        raise ValueError("its number of data files is missing or invalid")
    if byte_order not in (0, 1):
        raise ValueError("its byte order is unknown")
    return num_shards, byte_order == 1


def write_header(num_shards: int) -> bytes:
    """Return the header of a little-endian checkpoint, version 1."""
    return write_fields([(1, num_shards), (3, write_fields([(1, 1)]))])


def parse_entry(key: bytes, message: bytes, num_shards: int) -> BundleEntry:
    """Parse and validate the entry of a variable or slice.

    Raises: ValueError if it is damaged.
    """
    numbers = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}
    shape: tuple[int, ...] = ()
    slices: list[bytes] = []
    for number, value in read_fields(message):
        if number in numbers and isinstance(value, int):
            numbers[number] = to_signed(value)
        elif number == 2 and isinstance(value, bytes):
            shape = _parse_shape(value)
        elif number == 7 and isinstance(value, bytes):
            slices.append(value)
        else:
            raise ValueError("an entry has an unknown field")
    dtype_id, shard, offset, size, checksum = (numbers[number] for number in (1, 3, 4, 5, 6))
    name = key.decode(errors="surrogateescape")
    entry = BundleEntry(
        name=name, dtype=_DTYPES.get(dtype_id), shape=shape, shard=shard, offset=offset, size=size, checksum=checksum,
        slices=tuple(_parse_slice(value, shape) for value in slices),
    )  # fmt: skip
    if len(slices) > _MAX_SLICES:
        raise ValueError(f"{name!r:.80} has {len(slices):,} slices, more than {_MAX_SLICES:,}")
    if not (0 <= shard < num_shards and offset >= 0 and size >= 0):
        raise ValueError(f"the shard, offset or size of {name!r:.80} is invalid")
    if entry.dtype is None and dtype_id != _STRING and dtype_id < 1:
        raise ValueError(f"the dtype of {name!r:.80} is invalid")
    if entry.dtype is not None and not slices and entry.nbytes != size:
        raise ValueError(f"{name!r:.80} has {size} bytes, but its shape needs {entry.nbytes}")
    return entry


def write_entry(array: np.ndarray, *, shard: int, offset: int, size: int, checksum: int) -> bytes:
    """Return the entry of an array; the arguments are the fields of `BundleEntry`."""
    shape = b"".join(
        write_fields([(2, write_fields([(1, length)]))]) if length else b"\x12\x00" for length in array.shape
    )
    dtype_and_shape = write_fields([(1, DTYPE_IDS[array.dtype.name])]) + write_fields([(2, shape)] if shape else [])
    return dtype_and_shape + write_fields([(3, shard), (4, offset), (5, size)]) + fixed32(6, checksum)


def _parse_shape(message: bytes) -> tuple[int, ...]:
    axes = []
    for number, value in read_fields(message):
        if number == 2 and isinstance(value, bytes):
            length = dict(read_fields(value)).get(1, 0)
            if not isinstance(length, int) or to_signed(length) < 0:
                raise ValueError("the length of an axis is unknown")
            axes.append(length)
        elif number == 3 and value:
            raise ValueError("a shape is unknown")
    if len(axes) > _MAX_AXES:
        raise ValueError(f"a shape has {len(axes)} axes")
    return tuple(axes)


def _parse_slice(message: bytes, shape: tuple[int, ...]) -> TensorSlice:
    """Parse a slice. An extent without a length covers the whole axis."""
    extents = [
        dict(read_fields(value)) for number, value in read_fields(message) if number == 1 and isinstance(value, bytes)
    ]
    if len(extents) != len(shape):
        raise ValueError("a slice and its variable differ in the number of axes")
    result = []
    for extent, whole in zip(extents, shape, strict=True):
        start, length = extent.get(1, 0), extent.get(2, whole)
        if not (isinstance(start, int) and isinstance(length, int)) or to_signed(start) < 0 or to_signed(length) < 0:
            raise ValueError("the extent of a slice is invalid")
        result.append((start, length))
    return tuple(result)


def slice_extents(tensor_slice: TensorSlice, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return a slice as its key encodes it: an axis that is covered completely has length -1."""
    return [
        (0, _FULL_EXTENT) if (start, length) == (0, whole) else (start, length)
        for (start, length), whole in zip(tensor_slice, shape, strict=True)
    ]


def check_slices(entry: BundleEntry, prefix: Path) -> None:
    """Check that the slices of a variable cover it exactly, without overlap.

    Raises: ValueError if they do not.
    """

    def is_inside(tensor_slice: TensorSlice) -> bool:
        return all(start + length <= whole for (start, length), whole in zip(tensor_slice, entry.shape, strict=True))

    def overlap(one: TensorSlice, other: TensorSlice) -> bool:
        return all(a < b + n and b < a + m for (a, m), (b, n) in zip(one, other, strict=True))

    num_elements = sum(math.prod(length for _, length in tensor_slice) for tensor_slice in entry.slices)
    pairs = ((one, other) for index, one in enumerate(entry.slices) for other in entry.slices[:index])
    is_covered = num_elements == math.prod(entry.shape) and all(map(is_inside, entry.slices))
    if not is_covered or any(overlap(one, other) for one, other in pairs):
        raise ValueError(f"the slices of {entry.name} in {prefix}.index do not cover it exactly")


def check_no_overlap(entries: Iterable[BundleEntry]) -> None:
    """Check that no two variables share bytes: a small file could then describe any amount of data.

    Raises: ValueError if they do.
    """
    locations = sorted((e.shard, e.offset, e.offset + e.size) for e in entries if e.size and not e.slices)
    if any(shard == other and end > start for (shard, _, end), (other, start, _) in pairwise(locations)):
        raise ValueError("its variables overlap")


def assign_shards(arrays: Mapping[str, np.ndarray], num_shards: int) -> list[list[str]]:
    """Distribute arrays over data files: the largest first, each to the smallest file so far; return sorted names."""
    shards: list[list[str]] = [[] for _ in range(num_shards)]
    sizes = [0] * num_shards
    for name in sorted(arrays, key=lambda name: (-arrays[name].nbytes, name)):
        smallest = sizes.index(min(sizes))
        shards[smallest].append(name)
        sizes[smallest] += arrays[name].nbytes
    return [sorted(names) for names in shards]
