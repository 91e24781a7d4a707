"""LevelDB tables: sorted keys and values in a file, the format of TensorFlow's checkpoint index.

Source: LevelDB's doc/table_format.md, and TensorFlow's lib/io/format.h, which is compatible.

    data blocks, a metaindex block, an index block     each: entries, restart points, compression type, checksum
    footer                                             handles of the last two blocks, and a magic number

An entry is (length of the prefix shared with the previous key, length of the rest, length of the value, rest, value).
The index block has one entry per data block: a key not lower than its last key, and the block's handle.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from imagegpt.checkpoints.protobuf import read_varint, write_varint

FOOTER_BYTES = 48
_MAGIC = 0xDB4775248B80FB57
_TRAILER_BYTES = 5  # compression type, checksum
_NO_COMPRESSION, _SNAPPY = 0, 1
_MAX_SNAPPY_RATIO = 24  # Snappy expands 3 bytes to at most 64
_MAX_TABLE_RATIO = 64  # shared prefixes can expand without limit; TensorFlow's keys and Snappy stay below 10
_BLOCK_BYTES = 4096
_RESTART_INTERVAL = 16


class _BlockHandle(NamedTuple):
    """Offset and size of a block, without its trailer."""

    offset: int
    size: int


def masked_crc32c(data: bytes | memoryview) -> int:
    """Return the masked CRC-32C: rotated and shifted, because data may itself contain checksums.

    Raises: ValueError if the library crc32c is not installed.
    """
    try:
        from crc32c import crc32c
    except ImportError as error:
        raise ValueError("TensorFlow checkpoints need the library crc32c: pip install 'imagegpt[openai]'") from error
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_table(content: bytes) -> dict[bytes, bytes]:
    """Read all entries of a table, in order.

    Raises: ValueError if it is not a table, or damaged.
    """
    if len(content) < FOOTER_BYTES:
        raise ValueError(f"it has {len(content)} bytes, fewer than the {FOOTER_BYTES} of a footer")
    footer = content[-FOOTER_BYTES:]
    if struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
        raise ValueError("it does not end with the magic number of a LevelDB table")
    _, position = _read_handle(footer, 0)  # the metaindex block, which TensorFlow leaves empty
    index, _ = _read_handle(footer, position)
    entries: dict[bytes, bytes] = {}
    previous, remaining_bytes = None, _MAX_TABLE_RATIO * len(content)
    for _, encoded_handle in _entries(_read_block(content, index)):
        handle, end = _read_handle(encoded_handle, 0)
        if end != len(encoded_handle):
            raise ValueError("its index block is damaged")
        for key, value in _entries(_read_block(content, handle)):
            if previous is not None and key <= previous:
                raise ValueError("its keys are not in order")
            remaining_bytes -= len(key) + len(value)
            if remaining_bytes < 0:
                raise ValueError(f"its {len(content):,} bytes expand to more than {_MAX_TABLE_RATIO} times as many")
            entries[key], previous = value, key
    return entries


def write_table(entries: Mapping[bytes, bytes]) -> bytes:
    """Return the content of a file with these entries, given in any order, uncompressed."""
    out = bytearray()
    data_blocks = [(block[-1][0], _append_block(out, block)) for block in _split_blocks(sorted(entries.items()))]
    metaindex = _append_block(out, [])
    index = _append_block(out, [(key, _write_handle(handle)) for key, handle in data_blocks])
    footer = (_write_handle(metaindex) + _write_handle(index)).ljust(FOOTER_BYTES - 8, b"\0")
    return bytes(out + footer + struct.pack("<Q", _MAGIC))


def _read_block(content: bytes, handle: _BlockHandle) -> bytes:
    """Return the entries and restart points of a block, after verifying its checksum."""
    end = handle.offset + handle.size
    if end + _TRAILER_BYTES > len(content) - FOOTER_BYTES:
        raise ValueError("a block lies beyond the end")
    stored, compression = content[handle.offset : end], content[end]
    (checksum,) = struct.unpack_from("<I", content, end + 1)
    if masked_crc32c(content[handle.offset : end + 1]) != checksum:
        raise ValueError(f"the checksum of the block at byte {handle.offset} is wrong")
    if compression == _NO_COMPRESSION:
        return stored
    if compression == _SNAPPY:
        return _decompress_snappy(stored)
    raise ValueError(f"a block has the unknown compression type {compression}")


def _decompress_snappy(stored: bytes) -> bytes:
    try:
        from cramjam import snappy
    except ImportError as error:
        raise ValueError("this checkpoint needs the library cramjam: pip install 'imagegpt[openai]'") from error
    size, _ = read_varint(stored, 0)
    if size > _MAX_SNAPPY_RATIO * len(stored):
        raise ValueError(f"a block of {len(stored)} bytes claims to expand to {size}")
    try:
        return bytes(snappy.decompress_raw(stored))
    except MemoryError:
        raise
    except Exception as error:  # cramjam has its own exception class
        raise ValueError(f"a block cannot be decompressed ({error})") from error


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block, in order."""
    if len(block) < 4:
        raise ValueError("a block is too short")
    (num_restarts,) = struct.unpack_from("<I", block, len(block) - 4)
    end = len(block) - 4 - 4 * num_restarts
    if num_restarts < 1 or end < 0:
        raise ValueError("the restart points of a block are damaged")
    position, key = 0, b""
    while position < end:
        shared, position = read_varint(block, position)
        unshared, position = read_varint(block, position)
        size, position = read_varint(block, position)
        if shared > len(key) or position + unshared + size > end:
            raise ValueError("an entry is damaged")
        key = key[:shared] + block[position : position + unshared]
        position += unshared + size
        yield key, block[position - size : position]


def _split_blocks(entries: Iterable[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    block: list[tuple[bytes, bytes]] = []
    size = 0
    for key, value in entries:
        block.append((key, value))
        size += len(key) + len(value)
        if size >= _BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _append_block(out: bytearray, entries: list[tuple[bytes, bytes]]) -> _BlockHandle:
    """Append a block to a file; return its handle."""
    block, restarts, previous = bytearray(), [0], b""
    for number, (key, value) in enumerate(entries):
        shared = 0
        if number % _RESTART_INTERVAL:
            while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
                shared += 1
        elif number:
            restarts.append(len(block))
        block += write_varint(shared) + write_varint(len(key) - shared) + write_varint(len(value))
        block += key[shared:] + value
        previous = key
    block += struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))
    handle = _BlockHandle(len(out), len(block))
    block.append(_NO_COMPRESSION)
    out += block + struct.pack("<I", masked_crc32c(bytes(block)))
    return handle


def _read_handle(data: bytes, position: int) -> tuple[_BlockHandle, int]:
    offset, position = read_varint(data, position)
    size, position = read_varint(data, position)
    return _BlockHandle(offset, size), position


def _write_handle(handle: _BlockHandle) -> bytes:
    return write_varint(handle.offset) + write_varint(handle.size)
