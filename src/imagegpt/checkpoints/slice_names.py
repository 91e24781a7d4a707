"""Under which names TensorFlow keeps the parts of a variable that was saved in parts.

Source: EncodeTensorNameSlice in TensorFlow's core/util/saved_tensor_slice_util.cc, and
core/lib/strings/ordered_code.cc, whose bytes sort as what they stand for.
"""

from collections.abc import Sequence

_BYTES_64 = 8
_HEADERS = [0, 0x8000, 0xC000, 0xE000, 0xF000, 0xF800, 0xFC00, 0xFE00, 0xFF00, 0xFF80, 0xFFC0]  # by bytes in all


def encoded_slice_name(name: str, box: Sequence[tuple[int, int]]) -> bytes:
    """The key of a part.

    Args:
        name: of the variable.
        box: where the part begins on each axis and how long it is there; (0, -1) for all of an axis.
    """
    out = _number(0) + _text(name.encode(errors="surrogateescape")) + _number(len(box))
    return out + b"".join(_signed(start) + _signed(length) for start, length in box)


def _number(value: int) -> bytes:
    content = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([len(content)]) + content


def _text(value: bytes) -> bytes:
    escaped = {0x00: b"\x00\xff", 0xFF: b"\xff\x00"}
    return b"".join(escaped.get(byte, bytes([byte])) for byte in value) + b"\x00\x01"


def _signed(value: int) -> bytes:
    """In as few bytes as hold the number, its sign, and in the first bits how many bytes there are."""
    size = (value if value >= 0 else ~value).bit_length() // 7 + 1
    content = bytearray(value.to_bytes(_BYTES_64 + 2, "big", signed=True)[-size:])
    header = _HEADERS[size].to_bytes(2, "big") if size > 1 else b"\x80"
    for index, bits in enumerate(header):
        content[index] ^= bits
    return bytes(content)
