"""TensorFlow's checkpoints ("tensor bundles") without TensorFlow: PREFIX.index, and PREFIX.data-00000-of-00032 ...

The index is a sorted table (`sorted_table`) of protocol buffers (`wire`): under the empty key how many data files there
are, under each variable's name its type, shape, place and checksum. A variable that was saved in parts has an entry
that lists them, and one for each part under a name of its own kind (`slice_names`).

Source: TensorFlow's core/util/tensor_bundle and core/protobuf/tensor_bundle.proto.
"""

import math
import mmap
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from imagegpt.checkpoints.leveldb import masked_crc32c, read_table, write_table
from imagegpt.checkpoints.protobuf import fixed32, read_fields, signed, write_fields
from imagegpt.checkpoints.slice_names import encoded_slice_name
from imagegpt.common import ranges

_TYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 8: "complex64", 9: "int64", 10: "bool",
    14: "bfloat16", 17: "uint16", 18: "complex128", 19: "float16", 22: "uint32", 23: "uint64",
}  # fmt: skip
_NUMBERS = {name: number for number, name in _TYPES.items()}
_STRING = 7
_MOST_AXES = 32  # numpy's own limit, nearly
_MOST_PARTS = 1000  # of a variable; each is compared with every other
_MOST_INDEX_BYTES = 64 * 2**20  # that of a model of a thousand variables has 50 kB
_WHOLE_AXIS = -1

Box = tuple[tuple[int, int], ...]  # where a part begins on each axis, and how long it is there


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A variable, as the index describes it.

    Attributes:
        name: of the variable, or as encoded, of a part of one.
        dtype: numpy's name, or bfloat16; None if it holds text or something that is no number.
        shape: of the array.
        shard: the number of its file.
        offset: where it begins in the file.
        size: in bytes.
        checksum: of the bytes.
        parts: where the parts lie, if it was saved in parts; offset, size and checksum mean nothing then.
    """

    name: str
    dtype: str | None
    shape: tuple[int, ...]
    shard: int = 0
    offset: int = 0
    size: int = 0
    checksum: int = 0
    parts: tuple[Box, ...] = field(default=())

    @property
    def nbytes(self) -> int:
        """Of the array; of what is no number, as it is stored."""
        return self.size if self.dtype is None else math.prod(self.shape) * numpy_type(self.dtype).itemsize


class DamagedError(ValueError):
    """A file is cut short, or its checksum is wrong.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path


class TensorBundle(Mapping[str, np.ndarray]):
    """The variables of a checkpoint by name, read and checked when they are asked for.

    An array is a view of the file, which is mapped, and cannot be written to; one that was saved in parts is put
    together in memory.

    Args:
        prefix: what the names of the files begin with.
        entries: by name.
        num_shards: files.
        is_big_endian: how numbers lie.
        locate: says where a data file really is.
    """

    def __init__(
        self,
        prefix: Path,
        entries: Mapping[bytes, Entry],
        num_shards: int,
        is_big_endian: bool,
        locate: Callable[[Path], Path] = lambda path: path,
    ) -> None:
        self.prefix, self.num_shards, self._locate = prefix, num_shards, locate
        self._entries, self._is_big_endian = entries, is_big_endian
        self._names = {entry.name: key for key, entry in entries.items() if not key.startswith(b"\0")}
        self._files: dict[int, mmap.mmap | bytes] = {}

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, name: str) -> np.ndarray:
        """A variable.

        Raises: KeyError if there is none of the name; ValueError or OSError, in one sentence, if it is damaged, is cut
            short, or holds no numbers.
        """
        entry = self.entry(name)
        if entry.dtype is None:
            raise ValueError(f"{name} of {self.prefix} holds no numbers: leave it out")
        return self._joined(entry) if entry.parts else self._read(entry, name)

    def entry(self, name: str) -> Entry:
        """What the index says of a variable.

        Raises: KeyError if there is none of the name.
        """
        return self._entries[self._names[name]]

    def data_sizes(self) -> list[int]:
        """The bytes that each data file has, as far as the index tells: up to the end of its last variable."""
        ends = [0] * self.num_shards
        for entry in self._entries.values():
            if not entry.parts:
                ends[entry.shard] = max(ends[entry.shard], entry.offset + entry.size)
        return ends

    def _joined(self, entry: Entry) -> np.ndarray:
        """A variable from its parts, which must fill it, each place once."""
        assert entry.dtype is not None
        _check_parts(entry, self.prefix)
        parts: list[tuple[Box, np.ndarray]] = []
        for box in entry.parts:
            part = self._entries.get(encoded_slice_name(entry.name, _as_stored(box, entry.shape)))
            if part is None:
                raise ValueError(f"{self.prefix}.index lists a part of {entry.name} that is not there")
            if part.shape != tuple(length for _, length in box) or part.dtype != entry.dtype:
                raise ValueError(
                    f"a part of {entry.name} in {self.prefix}.index has another shape or type than it says"
                )
            parts.append((box, self._read(part, entry.name)))
        out = np.empty(entry.shape, numpy_type(entry.dtype))
        for box, array in parts:
            out[tuple(slice(start, start + length) for start, length in box)] = array
        return out

    def _read(self, entry: Entry, name: str) -> np.ndarray:
        assert entry.dtype is not None
        path, file = self._path(entry.shard), self._file(entry.shard)
        if entry.offset + entry.size > len(file):
            raise DamagedError(
                path,
                f"{path} has {len(file):,} bytes and {name} would end at {entry.offset + entry.size:,}: it is cut "
                "short, get the file again",
            )
        with memoryview(file) as whole, whole[entry.offset : entry.offset + entry.size] as mine:
            if masked_crc32c(mine) != entry.checksum:
                raise DamagedError(
                    path, f"the checksum of {name} in {path} is wrong: it is damaged, get the file again"
                )
        dtype = numpy_type(entry.dtype)
        stored = dtype.newbyteorder(">") if self._is_big_endian else dtype
        count = math.prod(entry.shape)
        array = np.frombuffer(file, stored, count, entry.offset) if count else np.empty(0, dtype)
        if not array.flags.aligned or stored != dtype:
            array = array.astype(dtype)
        return array.reshape(entry.shape)

    def _path(self, shard: int) -> Path:
        return self._locate(shard_path(self.prefix, shard, self.num_shards))

    def _file(self, shard: int) -> mmap.mmap | bytes:
        if shard not in self._files:
            path = self._path(shard)
            try:
                with path.open("rb") as file:
                    empty = not path.stat().st_size  # which cannot be mapped
                    self._files[shard] = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"{path} is missing, one of the {self.num_shards} data files of {self.prefix}.index: get it, too"
                ) from error
        return self._files[shard]


def read_bundle(prefix: str | Path, *, locate: Callable[[Path], Path] = lambda path: path) -> TensorBundle:
    """Open a checkpoint of TensorFlow.

    Args:
        prefix: the path without `.index`, which may be there, too.
        locate: says where a data file is that is not where it should be.
    Returns: a mapping of names to arrays, which are read when they are asked for.
    Raises: FileNotFoundError if there is none; ValueError, in one sentence, if its index is damaged.
    """
    prefix = Path(str(prefix).removesuffix(".index"))
    path = prefix.with_name(prefix.name + ".index")
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint of TensorFlow {prefix}: {path.name} is missing")
    try:
        if path.stat().st_size > _MOST_INDEX_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, more than {_MOST_INDEX_BYTES:,}")
        table = read_table(path.read_bytes())
        num_shards, is_big_endian = _header(table.pop(b"", b""))
        entries = {key: _entry(key, value, num_shards) for key, value in table.items()}
        bundle = TensorBundle(prefix, entries, num_shards, is_big_endian, locate)
        _check_places(entries.values())
    except ValueError as error:
        raise ValueError(f"{path} is no index of a TensorFlow checkpoint, or damaged ({error})") from error
    return bundle


def _check_places(entries: Iterable[Entry]) -> None:
    """See that no two variables share bytes, of which a small file could hold any number, and fill the memory."""
    places = sorted((one.shard, one.offset, one.offset + one.size) for one in entries if one.size and not one.parts)
    if any(shard == other and end > start for (shard, _, end), (other, start, _) in pairwise(places)):
        raise ValueError("its variables lie one over the other")


def write_bundle(prefix: str | Path, arrays: Mapping[str, np.ndarray], num_shards: int = 1) -> None:
    """Write a checkpoint that TensorFlow reads. Each file appears whole or not at all, the index last.

    Args:
        prefix: the path without `.index`; its folder must exist.
        arrays: by name, of numbers.
        num_shards: data files, over which the arrays are spread, each in one of them.
    Raises: ValueError for an array of another kind, or no such number of files; OSError if it cannot be written.
    """
    prefix = Path(prefix)
    num_shards = ranges.SHARD_FILES.check("num_shards", num_shards)
    for name, array in arrays.items():
        if array.dtype.name not in _NUMBERS:
            raise ValueError(f"{name} is of type {array.dtype}: TensorFlow's checkpoints hold {', '.join(_NUMBERS)}")
        if not name or "\0" in name:
            raise ValueError(f"{name!r} is no name for a variable")
    header = write_fields([(1, num_shards), (3, write_fields([(1, 1)]))])
    entries: dict[bytes, bytes] = {b"": header}
    temporary: dict[Path, Path] = {}
    try:
        for shard, names in enumerate(_spread(arrays, num_shards)):
            path = shard_path(prefix, shard, num_shards)
            temporary[path] = _beside(path)
            with temporary[path].open("wb") as file:
                for name in names:
                    entries[name.encode()] = _write_array(file.write, file.tell(), shard, np.asarray(arrays[name]))
        path = prefix.with_name(prefix.name + ".index")
        temporary[path] = _beside(path)
        temporary[path].write_bytes(write_table(entries))
        for path, made in temporary.items():
            made.replace(path)
    finally:
        for made in temporary.values():
            made.unlink(missing_ok=True)


def numpy_type(name: str) -> np.dtype[Any]:
    """Numpy's type of a name; bfloat16 is that of ml_dtypes.

    Raises: ValueError if that library is missing.
    """
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise ValueError("bfloat16 needs the library ml_dtypes: pip install 'imagegpt[openai]'") from error
    return np.dtype(ml_dtypes.bfloat16)


def shard_path(prefix: Path, shard: int, num_shards: int) -> Path:
    """Where a data file is."""
    return prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{num_shards:05d}")


def _header(message: bytes) -> tuple[int, bool]:
    """Data files, and whether numbers lie with the highest byte first."""
    fields = dict(read_fields(message))
    num_shards, order = fields.get(1, 0), fields.get(2, 0)
    if not isinstance(num_shards, int) or not 1 <= num_shards <= ranges.SHARD_FILES.highest:
        raise ValueError("it does not say how many data files there are")
    if order not in (0, 1):
        raise ValueError("it does not say in which order bytes lie")
    return num_shards, order == 1


def _entry(key: bytes, message: bytes, num_shards: int) -> Entry:
    numbers = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}
    shape: tuple[int, ...] = ()
    parts: list[bytes] = []
    for number, value in read_fields(message):
        if number in numbers and isinstance(value, int):
            numbers[number] = signed(value)
        elif number == 2 and isinstance(value, bytes):
            shape = _shape(value)
        elif number == 7 and isinstance(value, bytes):
            parts.append(value)
        else:
            raise ValueError("an entry has a field that is not known")
    kind, shard, offset, size, checksum = (numbers[number] for number in (1, 3, 4, 5, 6))
    name = key.decode(errors="surrogateescape")
    entry = Entry(
        name=name, dtype=_TYPES.get(kind), shape=shape, shard=shard, offset=offset, size=size, checksum=checksum,
        parts=tuple(_box(part, shape) for part in parts),
    )  # fmt: skip
    if len(parts) > _MOST_PARTS:
        raise ValueError(f"{name!r:.80} has {len(parts):,} parts, more than {_MOST_PARTS:,}")
    if not (0 <= shard < num_shards and offset >= 0 and size >= 0):
        raise ValueError(f"the place of {name!r:.80} makes no sense")
    if entry.dtype is None and kind != _STRING and kind < 1:
        raise ValueError(f"the type of {name!r:.80} is none")
    if entry.dtype is not None and not parts and entry.nbytes != size:
        raise ValueError(f"{name!r:.80} has {size} bytes, and its shape wants {entry.nbytes}")
    return entry


def _shape(message: bytes) -> tuple[int, ...]:
    axes = []
    for number, value in read_fields(message):
        if number == 2 and isinstance(value, bytes):
            length = dict(read_fields(value)).get(1, 0)
            if not isinstance(length, int) or signed(length) < 0:
                raise ValueError("the length of an axis is not known")
            axes.append(length)
        elif number == 3 and value:
            raise ValueError("a shape is not known")
    if len(axes) > _MOST_AXES:
        raise ValueError(f"a shape has {len(axes)} axes")
    return tuple(axes)


def _box(message: bytes, shape: tuple[int, ...]) -> Box:
    """Where a part lies. An axis that has no length is there whole."""
    axes = [
        dict(read_fields(value)) for number, value in read_fields(message) if number == 1 and isinstance(value, bytes)
    ]
    if len(axes) != len(shape):
        raise ValueError("a part has another number of axes than the whole")
    box = []
    for axis, whole in zip(axes, shape, strict=True):
        start, length = axis.get(1, 0), axis.get(2, whole)
        if not (isinstance(start, int) and isinstance(length, int)) or signed(start) < 0 or signed(length) < 0:
            raise ValueError("the place of a part makes no sense")
        box.append((start, length))
    return tuple(box)


def _as_stored(box: Box, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """A box as it stands in names, where an axis that is there whole has no length."""
    return [
        (0, _WHOLE_AXIS) if (start, length) == (0, whole) else (start, length)
        for (start, length), whole in zip(box, shape, strict=True)
    ]


def _check_parts(entry: Entry, prefix: Path) -> None:
    def is_inside(box: Box) -> bool:
        return all(start + length <= whole for (start, length), whole in zip(box, entry.shape, strict=True))

    def meet(one: Box, other: Box) -> bool:
        return all(a < b + n and b < a + m for (a, m), (b, n) in zip(one, other, strict=True))

    filled = sum(math.prod(length for _, length in box) for box in entry.parts)
    others = ((one, other) for index, one in enumerate(entry.parts) for other in entry.parts[:index])
    whole = filled == math.prod(entry.shape) and all(map(is_inside, entry.parts))
    if not whole or any(meet(one, other) for one, other in others):
        raise ValueError(f"the parts of {entry.name} in {prefix}.index do not make a whole")


def _spread(arrays: Mapping[str, np.ndarray], num_shards: int) -> list[list[str]]:
    """Names for each file: the largest arrays first, each to the file that is the emptiest then."""
    files: list[list[str]] = [[] for _ in range(num_shards)]
    sizes = [0] * num_shards
    for name in sorted(arrays, key=lambda name: (-arrays[name].nbytes, name)):
        emptiest = sizes.index(min(sizes))
        files[emptiest].append(name)
        sizes[emptiest] += arrays[name].nbytes
    return [sorted(names) for names in files]


def _write_array(write: Callable[[Any], Any], offset: int, shard: int, array: np.ndarray) -> bytes:
    """Write an array's bytes; gives its entry."""
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    content = little.reshape(-1).view(np.uint8).data
    write(content)
    shape = b"".join(
        write_fields([(2, write_fields([(1, length)]))]) if length else b"\x12\x00" for length in array.shape
    )
    numbers = write_fields([(1, _NUMBERS[array.dtype.name])]) + write_fields([(2, shape)] if shape else [])
    place = write_fields([(3, shard), (4, offset), (5, len(content))])
    return numbers + place + fixed32(6, masked_crc32c(content))


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
