"""Sorted tables of keys and values in a file, as LevelDB defines them and TensorFlow writes its index.

Source: LevelDB's doc/table_format.md, and TensorFlow's lib/io/format.h, which differs in nothing that matters here.

    data blocks, a meta block, an index block      each: entries, restarts, kind of compression, checksum
    footer                                         where the last two are, and a magic number

An entry is (bytes shared with the key before, bytes of its own, bytes of the value, those, the value). The index block
has an entry a data block: a key no lower than its last, and where the block is.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from imagegpt.checkpoints.protobuf import read_varint, varint

FOOTER_BYTES = 48
_MAGIC = 0xDB4775248B80FB57
_TRAILER_BYTES = 5  # kind of compression, checksum
_NONE, _SNAPPY = 0, 1
_SNAPPY_EXPANDS = 24  # at most 64 bytes for 3
_TABLE_EXPANDS = 64  # keys share what they begin with; those of TensorFlow and Snappy come to less than 10
_BLOCK_BYTES = 4096
_RESTART_EVERY = 16


class _Place(NamedTuple):
    """Where a block is, its trailer not counted."""

    offset: int
    size: int


def masked_crc32c(data: bytes | memoryview) -> int:
    """The checksum that stands in files: CRC-32C, rotated and shifted, because data may have checksums in it.

    Raises: ValueError if the library is missing.
    """
    try:
        from crc32c import crc32c
    except ImportError as error:
        raise ValueError("TensorFlow's checkpoints need the library crc32c: pip install 'imagegpt[openai]'") from error
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_table(content: bytes) -> dict[bytes, bytes]:
    """All entries of a table, in their order.

    Args:
        content: of the whole file.
    Raises: ValueError if it is no table, or damaged.
    """
    if len(content) < FOOTER_BYTES:
        raise ValueError(f"it has {len(content)} bytes, fewer than the {FOOTER_BYTES} of a footer")
    footer = content[-FOOTER_BYTES:]
    if struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
        raise ValueError("it does not end as such a table does")
    _, position = _read_place(footer, 0)  # the meta block, which TensorFlow leaves empty
    index, _ = _read_place(footer, position)
    entries: dict[bytes, bytes] = {}
    last, room = None, _TABLE_EXPANDS * len(content)
    for _, value in _entries(_block(content, index)):
        place, end = _read_place(value, 0)
        if end != len(value):
            raise ValueError("its index is damaged")
        for key, one in _entries(_block(content, place)):
            if last is not None and key <= last:
                raise ValueError("its keys are not in order")
            room -= len(key) + len(one)
            if room < 0:
                raise ValueError(f"its {len(content):,} bytes claim to hold more than {_TABLE_EXPANDS} times as many")
            entries[key], last = one, key
    return entries


def write_table(entries: Mapping[bytes, bytes]) -> bytes:
    """The content of a file with these entries, uncompressed.

    Args:
        entries: in any order.
    """
    out = bytearray()
    index = [(several[-1][0], _append(out, several)) for several in _in_blocks(sorted(entries.items()))]
    meta = _append(out, [])
    place = _append(out, [(key, _written(place)) for key, place in index])
    footer = (_written(meta) + _written(place)).ljust(FOOTER_BYTES - 8, b"\0")
    return bytes(out + footer + struct.pack("<Q", _MAGIC))


def _block(content: bytes, place: _Place) -> bytes:
    """The entries and restarts of a block, checked."""
    end = place.offset + place.size
    if end + _TRAILER_BYTES > len(content) - FOOTER_BYTES:
        raise ValueError("a block lies beyond its end")
    stored, compression = content[place.offset : end], content[end]
    (checksum,) = struct.unpack_from("<I", content, end + 1)
    if masked_crc32c(content[place.offset : end + 1]) != checksum:
        raise ValueError(f"the checksum of the block at byte {place.offset} is wrong")
    if compression == _NONE:
        return stored
    if compression == _SNAPPY:
        return _unsnapped(stored)
    raise ValueError(f"a block is compressed in the way {compression}, which is not known")


def _unsnapped(stored: bytes) -> bytes:
    try:
        from cramjam import snappy
    except ImportError as error:
        raise ValueError("this checkpoint needs the library cramjam: pip install 'imagegpt[openai]'") from error
    size, _ = read_varint(stored, 0)
    if size > _SNAPPY_EXPANDS * len(stored):
        raise ValueError(f"a block of {len(stored)} bytes claims to hold {size}")
    try:
        return bytes(snappy.decompress_raw(stored))
    except MemoryError:
        raise
    except Exception as error:  # a class of the library's own
        raise ValueError(f"a block cannot be decompressed ({error})") from error


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block, in order."""
    if len(block) < 4:
        raise ValueError("a block is too short")
    (num_restarts,) = struct.unpack_from("<I", block, len(block) - 4)
    end = len(block) - 4 - 4 * num_restarts
    if num_restarts < 1 or end < 0:
        raise ValueError("the restarts of a block are damaged")
    position, key = 0, b""
    while position < end:
        shared, position = read_varint(block, position)
        own, position = read_varint(block, position)
        size, position = read_varint(block, position)
        if shared > len(key) or position + own + size > end:
            raise ValueError("an entry is damaged")
        key = key[:shared] + block[position : position + own]
        position += own + size
        yield key, block[position - size : position]


def _in_blocks(entries: Iterable[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    several: list[tuple[bytes, bytes]] = []
    size = 0
    for key, value in entries:
        several.append((key, value))
        size += len(key) + len(value)
        if size >= _BLOCK_BYTES:
            yield several
            several, size = [], 0
    if several:
        yield several


def _append(out: bytearray, entries: list[tuple[bytes, bytes]]) -> _Place:
    """Add a block to a file; says where it is."""
    block, restarts, before = bytearray(), [0], b""
    for number, (key, value) in enumerate(entries):
        shared = 0
        if number % _RESTART_EVERY:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        elif number:
            restarts.append(len(block))
        block += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    block += struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))
    place = _Place(len(out), len(block))
    block.append(_NONE)
    out += block + struct.pack("<I", masked_crc32c(bytes(block)))
    return place


def _read_place(data: bytes, position: int) -> tuple[_Place, int]:
    offset, position = read_varint(data, position)
    size, position = read_varint(data, position)
    return _Place(offset, size), position


def _written(place: _Place) -> bytes:
    return varint(place.offset) + varint(place.size)
