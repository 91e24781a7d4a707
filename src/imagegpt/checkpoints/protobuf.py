"""The wire format of protocol buffers, as far as TensorFlow checkpoints use it.

Source: https://protobuf.dev/programming-guides/encoding/. A message is a sequence of (field number << 3 | wire type,
value). Wire type 0 is a varint, 1 and 5 are eight and four bytes, 2 is a length followed by that many bytes. Missing
fields are 0 or empty.
"""

import struct
from collections.abc import Iterable, Iterator

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5  # wire types
_MAX_VARINT_BYTES = 10  # of a 64-bit integer

Value = int | bytes


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Read an unsigned integer of at most 64 bits, seven bits per byte, lowest first; return it and the next position.

    Raises: ValueError if it is cut short or too long.
    """
    number = 0
    for index in range(_MAX_VARINT_BYTES):
        if position + index >= len(data):
            raise ValueError("a varint is cut short")
        byte = data[position + index]
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if number >> 64:
                break
            return number, position + index + 1
    raise ValueError("a varint has more than 64 bits")


def write_varint(number: int) -> bytes:
    """Encode an integer; negative ones as 64 bits in two's complement."""
    number &= (1 << 64) - 1
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def to_signed(number: int) -> int:
    """Reinterpret an unsigned 64-bit integer as a signed one."""
    return number - (1 << 64) if number >> 63 else number


def read_fields(message: bytes) -> Iterator[tuple[int, Value]]:
    """Yield the fields of a message in order.

    Yields: the field's number, and its value, an integer or bytes.
    Raises: ValueError if the message is damaged.
    """
    position = 0
    while position < len(message):
        tag, position = read_varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if not number:
            raise ValueError("a field has the number 0")
        if wire_type == _VARINT:
            value, position = read_varint(message, position)
            yield number, value
            continue
        if wire_type == _LEN:
            size, position = read_varint(message, position)
        elif wire_type in (_I64, _I32):
            size = 8 if wire_type == _I64 else 4
        else:
            raise ValueError(f"a field has the unknown wire type {wire_type}")
        content = message[position : position + size]
        if len(content) < size:
            raise ValueError("a field is cut short")
        position += size
        yield number, content if wire_type == _LEN else int.from_bytes(content, "little")


def write_fields(fields: Iterable[tuple[int, Value]]) -> bytes:
    """Encode a message of integers and bytes; integers that are 0 are left out."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, bytes):
            out += write_varint(number << 3 | _LEN) + write_varint(len(value)) + value
        elif value:
            out += write_varint(number << 3 | _VARINT) + write_varint(value)
    return bytes(out)


def fixed32(number: int, value: int) -> bytes:
    """Encode a four-byte field."""
    return write_varint(number << 3 | _I32) + struct.pack("<I", value)
