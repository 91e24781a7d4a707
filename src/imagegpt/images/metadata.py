"""What an image file says beside its pixels, read so that nothing broken in it costs the pixels.

Pillow gives up a whole picture for a bad checksum in a comment, or for EXIF data that are none. Here the orientation is
looked for wherever a file may state it, and PNG, JPEG, WebP and TIFF files are rewritten without what breaks them.
"""

import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator

from PIL import Image

_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = 1
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STATED_IN = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # keys of Pillow's `info`
_WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I"}  # EXIF's types, as `struct` calls them

_PNG, _JPEG, _WEBP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF"
_TIFF = {b"II*\0": "<", b"MM\0*": ">"}  # and the byte order
REPAIRABLE = (_PNG, _JPEG, _WEBP, *_TIFF)  # how files begin that `without_metadata` knows
_TEXTS = ("tEXt", "zTXt", "iTXt")  # kinds of PNG's chunks
# The tags of TIFF that say how pixels are stored: their size, bits, compression, colours and places.
_TIFF_PIXELS = {
    *range(254, 260), 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, *range(322, 326), 332, 338, 339, 347,
    *range(512, 522), *range(529, 533),
}  # fmt: skip
_TIFF_PROFILE = 34_675
_TIFF_SIZES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), start=1))  # bytes of a value of each type
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


def turned_upright(picture: Image.Image) -> Image.Image:
    """The picture as its orientation says it is to be shown; itself if that is how it is stored, or nothing legible."""
    turn = _TURNS.get(_orientation(picture))
    if turn is None:  # nearly always; the copy costs time
        return picture
    upright = picture.transpose(turn)
    for key in _STATED_IN:  # or the next one to read it would turn it again
        upright.info.pop(key, None)
    return upright


def _orientation(picture: Image.Image) -> int:
    """1 to 8, as in EXIF: from EXIF data, from those that ImageMagick keeps in PNG's text, or from XMP."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stated = picture.getexif().get(_ORIENTATION)  # TIFF pictures, too, and what a program has set itself
    except Exception:  # noqa: BLE001 - whatever broken data lead Pillow to
        stated = None
    if isinstance(stated, int) and stated in range(1, 9):
        return stated
    exif, profile = picture.info.get("exif"), picture.info.get("Raw profile type exif")
    found = _in_exif(exif) if isinstance(exif, bytes) else None
    if found is None and isinstance(profile, str):
        found = _in_exif(_bytes_of_hex(profile))
    for key in _STATED_IN[2:]:
        if found is None:
            found = _in_xmp(picture.info.get(key))
    return _UPRIGHT if found is None else found


def _in_exif(exif: bytes) -> int | None:
    """The orientation in EXIF data, whose first entries are read one by one up to where they break off."""
    content = re.sub(rb"^(Exif\0\0){1,2}", b"", exif)
    order = {b"II": "<", b"MM": ">"}.get(content[:2])
    try:
        (start,) = struct.unpack_from(f"{order}I", content, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", content, start)
        for place in range(start + 2, start + 2 + 12 * num_entries, 12):
            tag, kind, num_values = struct.unpack_from(f"{order}HHI", content, place)
            if tag == _ORIENTATION and kind in _WHOLE_NUMBERS and num_values == 1:
                (value,) = struct.unpack_from(f"{order}{_WHOLE_NUMBERS[kind]}", content, place + 8)
                return value if value in range(1, 9) else None
    except struct.error:
        return None
    return None


def _bytes_of_hex(profile: str) -> bytes:
    """The data in ImageMagick's raw profiles: three lines in front, then hexadecimal digits, up to where they end."""
    digits = re.match(r"(?:[0-9a-fA-F]{2})*", "".join("".join(profile.split("\n")[3:]).split()))
    return bytes.fromhex(digits[0]) if digits else b""


def _in_xmp(xmp: object) -> int | None:
    text = xmp.decode("latin-1") if isinstance(xmp, bytes) else xmp if isinstance(xmp, str) else ""
    found = re.search(r'tiff:Orientation(?:="|>)([1-8])', text)
    return int(found[1]) if found else None


def without_metadata(content: bytes) -> Iterator[tuple[bytes, dict[str, bytes]]]:
    """A PNG, JPEG, WebP or TIFF file with ever less of what its pixels do not need; nothing for files of another kind.

    Of PNG, first everything goes that is broken or mere text; then the colour profile, the texts that can tell the
    orientation, and the transparent colour.

    Yields: the file, and the keys of Pillow's `info` that were taken out of it but can tell the orientation.
    """
    if content.startswith(_PNG):
        for kinds in (("tRNS", "iCCP", *_TEXTS), ("tRNS", *_TEXTS), ("tRNS",), _TEXTS, ()):
            yield _png_with(content, ("eXIf", *kinds)), {}
    elif content.startswith(_JPEG):
        yield _jpeg_with(content, lambda marker, length: marker == 0xE2 and length >= 16)
        yield _jpeg_with(content, lambda *_: False)
    elif content.startswith(_WEBP):
        yield _webp_pixels(content)
    elif content[:4] in _TIFF:
        for more in ({_ORIENTATION, _TIFF_PROFILE}, {_ORIENTATION}, set[int]()):
            yield _tiff_with(content, more), {}


def _png_with(content: bytes, kinds: tuple[str, ...]) -> bytes:
    """A PNG file with its pixels' chunks and others of some kinds, if their checksums fit."""
    kept, place = [_PNG], len(_PNG)
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        chunk, place = content[place : place + 12 + length], place + 12 + length
        if kind == b"IEND":
            break
        fits = chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))
        name = kind.decode("latin-1")
        states = name not in _TEXTS or chunk[8:].startswith((b"Raw profile type exif\0", b"XML:com.adobe.xmp\0"))
        if kind[:1].isupper() or (name in kinds and fits and states):
            kept.append(chunk)
    return b"".join((*kept, _PNG_END))


def _jpeg_with(content: bytes, keep: Callable[[int, int], bool]) -> tuple[bytes, dict[str, bytes]]:
    """A JPEG file without its comments and application segments, but for those that say what the colours mean."""
    kept, place, info = [content[:2]], 2, dict[str, bytes]()
    while content[place : place + 1] == b"\xff" and place + 4 <= len(content):
        marker, length = struct.unpack_from(">xBH", content, place)
        if not 0xC0 <= marker <= 0xFE or marker == 0xDA:
            break
        segment, place = content[place : place + 2 + length], place + 2 + length
        if marker == 0xE1 and segment[4:].startswith(b"Exif\0\0"):
            info.setdefault("exif", segment[4:])
        elif marker == 0xE1 and b"tiff:Orientation" in segment:
            info.setdefault("xmp", segment[4:])
        # JFIF's and Adobe's segments decide whether the three channels are YCbCr.
        is_needed = (marker == 0xE0 and length >= 16) or (marker == 0xEE and length >= 14)
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or is_needed or keep(marker, length):
            kept.append(segment)
    return b"".join((*kept, content[place:])), info


def _webp_pixels(content: bytes) -> tuple[bytes, dict[str, bytes]]:
    """A WebP file with its pixels alone."""
    kept, place, info = [], 12, dict[str, bytes]()
    while place + 8 <= len(content):
        kind, length = struct.unpack_from("<4sI", content, place)
        chunk, place = content[place : place + 8 + length], place + 8 + length + length % 2
        if kind == b"VP8X":  # its ninth byte says what else there is: colour profile, EXIF and XMP
            chunk = chunk[:8] + bytes([chunk[8] & ~0x2C]) + chunk[9:]
        if kind == b"EXIF":
            info["exif"] = chunk[8:]
        elif kind not in (b"ICCP", b"XMP "):
            kept.append(chunk + bytes(len(chunk) % 2))
    body = b"WEBP" + b"".join(kept)
    return _WEBP + struct.pack("<I", len(body)) + body, info


def _tiff_with(content: bytes, more: set[int]) -> bytes:
    """A TIFF file whose first directory has the tags of its pixels, and some more if their values are in the file.

    The values stay where they are. Further pages are gone.
    """
    order = _TIFF[content[:4]]
    start = int.from_bytes(content[4:8], "little" if order == "<" else "big")
    kept = []
    try:
        (num_entries,) = struct.unpack_from(f"{order}H", content, start)
        for place in range(start + 2, start + 2 + 12 * num_entries, 12):
            tag, kind, num_values, value = struct.unpack_from(f"{order}HHII", content, place)
            num_bytes = num_values * _TIFF_SIZES.get(kind, 0)
            fits = 0 < num_bytes <= 4 or (num_bytes and value + num_bytes <= len(content))
            if tag in _TIFF_PIXELS or (tag in more and fits):
                kept.append(content[place : place + 12])
    except struct.error:  # the file ends within its directory
        pass
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    return content[:start] + directory + content[start + len(directory) :]
