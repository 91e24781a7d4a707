"""The index of a TensorFlow checkpoint: parsing and writing of its header and entries.

The index maps the empty key to a `BundleHeaderProto` (number of data files, byte order), and each variable's name to a
`BundleEntryProto` (dtype, shape, shard, offset, size, checksum). Variables saved in slices, which
OpenAI's code does not write, are refused.

Source: TensorFlow's core/protobuf/tensor_bundle.proto, core/framework/tensor_shape.proto.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
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


@dataclass(frozen=True, kw_only=True)
class BundleEntry:
    """A variable, as the index describes it.

    Attributes:
        dtype: numpy's name, or bfloat16; None for strings and other types that are not numeric.
        shard: index of its data file.
        offset: in bytes, in the file.
        size: in bytes.
        checksum: masked CRC-32C of the bytes.
    """

    name: str
    dtype: str | None
    shape: tuple[int, ...]
    shard: int = 0
    offset: int = 0
    size: int = 0
    checksum: int = 0

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
    """Parse and validate the entry of a variable.

    Raises: ValueError if it is damaged, or the variable was saved in slices.
    """
    name = key.decode(errors="surrogateescape")
    numbers = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}
    shape: tuple[int, ...] = ()
    for number, value in read_fields(message):
        if number in numbers and isinstance(value, int):
            numbers[number] = to_signed(value)
        elif number == 2 and isinstance(value, bytes):
            shape = _parse_shape(value)
        elif number == 7 and isinstance(value, bytes):
            raise ValueError(f"{name!r:.80} was saved in slices, which OpenAI's variables are not")
        else:
            raise ValueError("an entry has an unknown field")
    dtype_id, shard, offset, size, checksum = (numbers[number] for number in (1, 3, 4, 5, 6))
    entry = BundleEntry(
        name=name, dtype=_DTYPES.get(dtype_id), shape=shape, shard=shard, offset=offset, size=size, checksum=checksum
    )  # fmt: skip
    if not (0 <= shard < num_shards and offset >= 0 and size >= 0):
        raise ValueError(f"the shard, offset or size of {name!r:.80} is invalid")
    if entry.dtype is None and dtype_id != _STRING and dtype_id < 1:
        raise ValueError(f"the dtype of {name!r:.80} is invalid")
    if entry.dtype is not None and entry.nbytes != size:
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


def check_no_overlap(entries: Iterable[BundleEntry]) -> None:
    """Check that no two variables share bytes: a small file could then describe any amount of data.

    Raises: ValueError if they do.
    """
    locations = sorted((e.shard, e.offset, e.offset + e.size) for e in entries if e.size)
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
