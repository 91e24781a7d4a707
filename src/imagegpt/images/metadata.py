"""Metadata of image files: the orientation, and files repaired by removing broken metadata.

Pillow refuses a whole image because of a bad checksum in a comment, or invalid EXIF data. Here the orientation is read
from every place a file may state it, and PNG, JPEG, WebP and TIFF files are rewritten without their broken metadata.
"""

import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator

from PIL import Image

_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = 1
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_KEYS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # of Pillow's `info`
_EXIF_INTEGERS = {1: "B", 3: "H", 4: "I"}  # EXIF's integer types and their `struct` formats

_PNG, _JPEG, _WEBP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF"
_TIFF = {b"II*\0": "<", b"MM\0*": ">"}  # with their byte order
REPAIRABLE = (_PNG, _JPEG, _WEBP, *_TIFF)  # signatures of the formats that `strip_metadata` supports
_TEXT_CHUNKS = ("tEXt", "zTXt", "iTXt")  # of PNG
# The TIFF tags needed to decode pixels: size, bits, compression, colours and offsets.
_TIFF_PIXEL_TAGS = {
    *range(254, 260), 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, *range(322, 326), 332, 338, 339, 347,
    *range(512, 522), *range(529, 533),
}  # fmt: skip
_TIFF_PROFILE = 34_675
_TIFF_SIZES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), start=1))  # bytes per value of each type
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


def apply_orientation(image: Image.Image) -> Image.Image:
    """Rotate or flip an image as its orientation says; return the image itself if it is upright."""
    transpose = _TRANSPOSES.get(_orientation(image))
    if transpose is None:  # nearly always; avoids a copy
        return image
    upright = image.transpose(transpose)
    for key in _ORIENTATION_KEYS:  # so that it is not applied twice
        upright.info.pop(key, None)
    return upright


def _orientation(image: Image.Image) -> int:
    """Return 1 to 8, as in EXIF: from EXIF data, from ImageMagick's EXIF text in PNG files, or from XMP."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            orientation = image.getexif().get(_ORIENTATION)  # also of TIFF, and of images created in memory
    except Exception:  # noqa: BLE001 - broken EXIF data can raise anything in Pillow
        orientation = None
    if isinstance(orientation, int) and orientation in range(1, 9):
        return orientation
    exif, profile = image.info.get("exif"), image.info.get("Raw profile type exif")
    found = _exif_orientation(exif) if isinstance(exif, bytes) else None
    if found is None and isinstance(profile, str):
        found = _exif_orientation(_decode_raw_profile(profile))
    for key in _ORIENTATION_KEYS[2:]:
        if found is None:
            found = _xmp_orientation(image.info.get(key))
    return _UPRIGHT if found is None else found


def _exif_orientation(exif: bytes) -> int | None:
    """Read the orientation from EXIF data, entry by entry, so that damage behind it does not matter."""
    content = re.sub(rb"^(Exif\0\0){1,2}", b"", exif)
    order = {b"II": "<", b"MM": ">"}.get(content[:2])
    try:
        (start,) = struct.unpack_from(f"{order}I", content, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", content, start)
        for offset in range(start + 2, start + 2 + 12 * num_entries, 12):
            tag, kind, num_values = struct.unpack_from(f"{order}HHI", content, offset)
            if tag == _ORIENTATION and kind in _EXIF_INTEGERS and num_values == 1:
                (value,) = struct.unpack_from(f"{order}{_EXIF_INTEGERS[kind]}", content, offset + 8)
                return value if value in range(1, 9) else None
    except struct.error:
        return None
    return None


def _decode_raw_profile(profile: str) -> bytes:
    """Decode a raw profile of ImageMagick: three header lines, then hexadecimal digits."""
    digits = re.match(r"(?:[0-9a-fA-F]{2})*", "".join("".join(profile.split("\n")[3:]).split()))
    return bytes.fromhex(digits[0]) if digits else b""


def _xmp_orientation(xmp: object) -> int | None:
    text = xmp.decode("latin-1") if isinstance(xmp, bytes) else xmp if isinstance(xmp, str) else ""
    found = re.search(r'tiff:Orientation(?:="|>)([1-8])', text)
    return int(found[1]) if found else None


def strip_metadata(content: bytes) -> Iterator[tuple[bytes, dict[str, bytes]]]:
    """Yield versions of a PNG, JPEG, WebP or TIFF file with less and less metadata; none for other formats.

    For PNG, the first version drops broken and text chunks, later ones the colour profile, the texts that may contain
    the orientation, and the transparent colour.

    Yields: the file, and removed entries of Pillow's `info` that may contain the orientation.
    """
    if content.startswith(_PNG):
        for kinds in (("tRNS", "iCCP", *_TEXT_CHUNKS), ("tRNS", *_TEXT_CHUNKS), ("tRNS",), _TEXT_CHUNKS, ()):
            yield _strip_png(content, ("eXIf", *kinds)), {}
    elif content.startswith(_JPEG):
        yield _strip_jpeg(content, lambda marker, length: marker == 0xE2 and length >= 16)
        yield _strip_jpeg(content, lambda *_: False)
    elif content.startswith(_WEBP):
        yield _strip_webp(content)
    elif content[:4] in _TIFF:
        for extra_tags in ({_ORIENTATION, _TIFF_PROFILE}, {_ORIENTATION}, set[int]()):
            yield _strip_tiff(content, extra_tags), {}


def _strip_png(content: bytes, ancillary: tuple[str, ...]) -> bytes:
    """Keep the critical chunks of a PNG file, and those `ancillary` ones whose checksum is valid."""
    kept, offset = [_PNG], len(_PNG)
    while offset + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, offset)
        chunk, offset = content[offset : offset + 12 + length], offset + 12 + length
        if kind == b"IEND":
            break
        is_valid = chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))
        name = kind.decode("latin-1")
        is_useful = name not in _TEXT_CHUNKS or chunk[8:].startswith(
            (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
        )
        if kind[:1].isupper() or (name in ancillary and is_valid and is_useful):
            kept.append(chunk)
    return b"".join((*kept, _PNG_END))


def _strip_jpeg(content: bytes, keep: Callable[[int, int], bool]) -> tuple[bytes, dict[str, bytes]]:
    """Drop comments and application segments of a JPEG file, except those that define the colours."""
    kept, offset, info = [content[:2]], 2, dict[str, bytes]()
    while content[offset : offset + 1] == b"\xff" and offset + 4 <= len(content):
        marker, length = struct.unpack_from(">xBH", content, offset)
        if not 0xC0 <= marker <= 0xFE or marker == 0xDA:
            break
        segment, offset = content[offset : offset + 2 + length], offset + 2 + length
        if marker == 0xE1 and segment[4:].startswith(b"Exif\0\0"):
            info.setdefault("exif", segment[4:])
        elif marker == 0xE1 and b"tiff:Orientation" in segment:
            info.setdefault("xmp", segment[4:])
        # The JFIF and Adobe segments determine whether the three channels are YCbCr.
        is_needed = (marker == 0xE0 and length >= 16) or (marker == 0xEE and length >= 14)
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or is_needed or keep(marker, length):
            kept.append(segment)
    return b"".join((*kept, content[offset:])), info


def _strip_webp(content: bytes) -> tuple[bytes, dict[str, bytes]]:
    """Keep only the pixels of a WebP file."""
    kept, offset, info = [], 12, dict[str, bytes]()
    while offset + 8 <= len(content):
        kind, length = struct.unpack_from("<4sI", content, offset)
        chunk, offset = content[offset : offset + 8 + length], offset + 8 + length + length % 2
        if kind == b"VP8X":  # its ninth byte has flags for colour profile, EXIF and XMP
            chunk = chunk[:8] + bytes([chunk[8] & ~0x2C]) + chunk[9:]
        if kind == b"EXIF":
            info["exif"] = chunk[8:]
        elif kind not in (b"ICCP", b"XMP "):
            kept.append(chunk + bytes(len(chunk) % 2))
    body = b"WEBP" + b"".join(kept)
    return _WEBP + struct.pack("<I", len(body)) + body, info


def _strip_tiff(content: bytes, extra_tags: set[int]) -> bytes:
    """Keep the pixel tags of a TIFF file's first directory, and extra tags whose values lie within the file.

    Values do not move. Further pages are dropped.
    """
    order = _TIFF[content[:4]]
    start = int.from_bytes(content[4:8], "little" if order == "<" else "big")
    kept = []
    try:
        (num_entries,) = struct.unpack_from(f"{order}H", content, start)
        for offset in range(start + 2, start + 2 + 12 * num_entries, 12):
            tag, kind, num_values, value = struct.unpack_from(f"{order}HHII", content, offset)
            num_bytes = num_values * _TIFF_SIZES.get(kind, 0)
            is_inside = 0 < num_bytes <= 4 or (num_bytes and value + num_bytes <= len(content))
            if tag in _TIFF_PIXEL_TAGS or (tag in extra_tags and is_inside):
                kept.append(content[offset : offset + 12])
    except struct.error:  # the file ends within its directory
        pass
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    return content[:start] + directory + content[start + len(directory) :]
