"""Protocol buffers' wire format, as far as TensorFlow's checkpoints use it.

Source: https://protobuf.dev/programming-guides/encoding/. A message is a sequence of (number << 3 | kind, value); kind
0 is a varint, 1 and 5 are eight and four bytes, 2 is a length and so many bytes. Fields that are not there are 0 or
empty.
"""

import struct
from collections.abc import Iterable, Iterator

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_MOST_VARINT_BYTES = 10  # of 64 bits

Value = int | bytes


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """An unsigned number of at most 64 bits, seven bits a byte, the lowest first; and the position behind it.

    Raises: ValueError if there is none.
    """
    number = 0
    for index in range(_MOST_VARINT_BYTES):
        if position + index >= len(data):
            raise ValueError("a number is cut short")
        byte = data[position + index]
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if number >> 64:
                break
            return number, position + index + 1
    raise ValueError("a number has more than 64 bits")


def varint(number: int) -> bytes:
    """What `read_varint` reads; numbers below 0 as 64 bits in two's complement."""
    number &= (1 << 64) - 1
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def signed(number: int) -> int:
    """A 64-bit number that is meant to have a sign."""
    return number - (1 << 64) if number >> 63 else number


def read_fields(message: bytes) -> Iterator[tuple[int, Value]]:
    """The fields of a message, as they come.

    Yields: the field's number; a number, or bytes.
    Raises: ValueError if this is no message.
    """
    position = 0
    while position < len(message):
        tag, position = read_varint(message, position)
        number, kind = tag >> 3, tag & 7
        if not number:
            raise ValueError("a field has no number")
        if kind == _VARINT:
            value, position = read_varint(message, position)
            yield number, value
            continue
        if kind == _BYTES:
            size, position = read_varint(message, position)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            size = 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"a field is of the kind {kind}, which there is not")
        content = message[position : position + size]
        if len(content) < size:
            raise ValueError("a field is cut short")
        position += size
        yield number, content if kind == _BYTES else int.from_bytes(content, "little")


def write_fields(fields: Iterable[tuple[int, Value]]) -> bytes:
    """A message of numbers and bytes; fields that are 0 or empty are left out."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, bytes):
            out += varint(number << 3 | _BYTES) + varint(len(value)) + value
        elif value:
            out += varint(number << 3 | _VARINT) + varint(value)
    return bytes(out)


def fixed32(number: int, value: int) -> bytes:
    """A field of four bytes."""
    return varint(number << 3 | _FOUR_BYTES) + struct.pack("<I", value)
