"""Index keys of the slices of a TensorFlow variable that was saved in slices.

Source: EncodeTensorNameSlice in TensorFlow's core/util/saved_tensor_slice_util.cc, and the order-preserving encoding of
core/lib/strings/ordered_code.cc.
"""

from collections.abc import Sequence

_BYTES_64 = 8
_HEADERS = [0, 0x8000, 0xC000, 0xE000, 0xF000, 0xF800, 0xFC00, 0xFE00, 0xFF00, 0xFF80, 0xFFC0]  # by number of bytes


def encode_slice_name(name: str, extents: Sequence[tuple[int, int]]) -> bytes:
    """Return the key of a slice.

    Args:
        name: of the variable.
        extents: (start, length) on each axis; (0, -1) for a whole axis.
    """
    out = _encode_unsigned(0) + _encode_string(name.encode(errors="surrogateescape")) + _encode_unsigned(len(extents))
    return out + b"".join(_encode_signed(start) + _encode_signed(length) for start, length in extents)


def _encode_unsigned(value: int) -> bytes:
    content = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([len(content)]) + content


def _encode_string(value: bytes) -> bytes:
    escaped = {0x00: b"\x00\xff", 0xFF: b"\xff\x00"}
    return b"".join(escaped.get(byte, bytes([byte])) for byte in value) + b"\x00\x01"


def _encode_signed(value: int) -> bytes:
    """Encode the number in as few bytes as possible, with its sign and the number of bytes in the leading bits."""
    size = (value if value >= 0 else ~value).bit_length() // 7 + 1
    content = bytearray(value.to_bytes(_BYTES_64 + 2, "big", signed=True)[-size:])
    header = _HEADERS[size].to_bytes(2, "big") if size > 1 else b"\x80"
    for index, bits in enumerate(header):
        content[index] ^= bits
    return bytes(content)
