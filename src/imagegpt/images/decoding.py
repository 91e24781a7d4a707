"""Image files: opening, decoding, turning upright, and what is said of those that cannot be read."""

import io
import os
import struct
import sys
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, UnidentifiedImageError, features
from PIL.ImageFile import ImageFile

from imagegpt.images.metadata import REPAIRABLE, turned_upright, without_metadata

PHONE_SUFFIXES = (".avif", ".heic", ".heif")  # of pictures that Pillow reads only with a library that it may lack

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_GREY_SCALES = {"L": 255, "L;4": 15, "L;2": 3}  # the highest level in a PNG file, by what Pillow calls its pixels
_SIXTEEN_BIT_RGB, _GREY_WITH_ALPHA = "RGB;16B", "LA;16B"
# What to call 16-bit values so that Pillow keeps the second byte of each: the wrong byte order. As four channels of
# 8 bits, grey with transparency has its second bytes in the second and the fourth one.
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_SECOND_BYTES = {
    f"{kind};16{order}": f"{kind.upper()};16{other}"
    for kind in ("RGB", "RGBA", "RGBX", "RGBa")
    for order, other in _OTHER_ORDER.items()
} | {_GREY_WITH_ALPHA: "RGBA"}


def open_picture(file: Path | IO[bytes], name: str) -> Image.Image:
    """Open an image file; its pixels are decoded later.

    Args:
        file: a path, or an open file.
        name: of it, for the errors.
    Raises: ValueError, with the name in it, if Pillow cannot read it or it has more pixels than Pillow allows.
    """
    try:
        try:
            return _opened(file)
        except UnidentifiedImageError:
            if not _can_learn_to_read(_content(file, 24), name):
                raise
            return _opened(file)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{name} has more pixels than Pillow's limit of {Image.MAX_IMAGE_PIXELS:,}: shrink the image first"
        ) from error
    except MemoryError as error:
        raise out_of_memory(name) from error
    except _MissingDecoderError:
        raise
    except Exception as error:  # Pillow's parsers raise whatever they stumble over
        if isinstance(error, OSError) and error.strerror:  # the system's errors carry one, Pillow's do not
            raise ValueError(f"{name} cannot be opened ({error.strerror}): check the file") from error
        if (picture := _without_what_is_broken(file)) is not None:
            return picture
        raise _unreadable(name, error) from error


def decoded(picture: Image.Image, name: str) -> Image.Image:
    """The picture with its pixels, which Pillow puts off, upright; its transparent colour on the scale of its pixels.

    Args:
        picture: opened by Pillow, or made by a program.
        name: of it, for the errors.
    Raises: ValueError, with the name in it, if it has no pixels or they are damaged.
    """
    if not (picture.width and picture.height):
        raise ValueError(f"{name} is {picture.width}x{picture.height} pixels: it must have at least one")
    file = getattr(picture, "fp", None)
    try:
        return turned_upright(_loaded(picture))
    except MemoryError as error:
        raise out_of_memory(name) from error
    except Exception as error:  # Pillow's decoders raise whatever their parsing stumbles over
        if (path := getattr(picture, "filename", "")) != "":
            file = Path(os.fsdecode(path))
        if file is not None and (repaired := _without_what_is_broken(file)) is not None:
            return turned_upright(repaired)
        raise _unreadable(name, error) from error


def out_of_memory(name: str) -> ValueError:
    """The error for a picture that there is no memory for."""
    return ValueError(f"{name} needs more memory than there is: shrink the image first")


def second_bytes(picture: Image.Image) -> Image.Image | None:
    """The lower halves of 16-bit values in a PNG or TIFF file, RGB or RGBA, of which Pillow keeps the upper ones.

    Args:
        picture: opened, and not decoded yet.
    Returns: None for all other pictures, and if the file is damaged.
    """
    raw_mode = _raw_mode(picture)
    if raw_mode not in _SECOND_BYTES or not isinstance(picture, ImageFile) or picture.fp is None:
        return None
    try:
        other = _opened(io.BytesIO(_content(picture.fp)))
        other.tile = [tile._replace(args=_with_raw_mode(tile.args, _SECOND_BYTES[raw_mode])) for tile in other.tile]
        other.load()
    except Exception:  # noqa: BLE001 - whatever Pillow stumbles over: decoding the picture itself tells what
        return None
    if raw_mode == _GREY_WITH_ALPHA:
        grey, alpha = other.getchannel(1), other.getchannel(3)
        return Image.merge("RGBA", (grey, grey, grey, alpha))
    return other


def _opened(file: Path | IO[bytes]) -> ImageFile:
    # Pillow's limit against decompression bombs is a mere warning up to twice its value.
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        picture = Image.open(file)
    if picture.format == "EPS":
        if isinstance(file, Path):  # otherwise it is the caller's
            picture.close()
        raise UnidentifiedImageError("it is PostScript, a program, for which Pillow would start Ghostscript")
    return picture


def _loaded(picture: Image.Image) -> Image.Image:
    """Decode the pixels, and bring the transparent colour of a PNG file, which is in the file's own bits, to theirs."""
    key, raw_mode = picture.info.get("transparency"), _raw_mode(picture)
    if raw_mode == _SIXTEEN_BIT_RGB and picture.format == "PNG" and isinstance(key, tuple):
        return _with_sixteen_bit_key(picture, np.array(key, np.uint16))
    if raw_mode in _GREY_SCALES and isinstance(key, int):
        highest = _GREY_SCALES[raw_mode]
        picture.info["transparency"] = (key & highest) * (255 // highest)
    elif raw_mode == "RGB" and isinstance(key, tuple):
        picture.info["transparency"] = tuple(value & 255 for value in key)
    picture.load()
    if picture.mode == "P" and picture.palette is None:  # a PNG file may lack it, or have it behind the pixels
        raise ValueError("it has no palette in front of its pixels")
    return picture


def _with_sixteen_bit_key(picture: Image.Image, key: np.ndarray) -> Image.Image:
    """A picture of 16-bit RGB as RGBA: transparent where all 16 bits are those of the transparent colour."""
    lower = second_bytes(picture)
    picture.load()
    is_key = np.ones((picture.height, picture.width), bool)
    for channel in range(3):
        is_key &= np.asarray(picture.getchannel(channel)) == key[channel] >> 8
        if lower is not None:
            is_key &= np.asarray(lower.getchannel(channel)) == key[channel] & 255
    opaque = picture.copy()
    del opaque.info["transparency"]
    opaque.putalpha(Image.fromarray(np.where(is_key, 0, 255).astype(np.uint8)))
    return opaque


def _raw_mode(picture: Image.Image) -> str | None:
    """What Pillow calls the pixels in a PNG or TIFF file not decoded yet, such as "L;2"; None for all else."""
    tiles = getattr(picture, "tile", None)
    if picture.format not in ("PNG", "TIFF") or not tiles:
        return None
    args: Any = tiles[0][3]
    return args if isinstance(args, str) else args[0]


def _with_raw_mode(args: Any, raw_mode: str) -> Any:
    return raw_mode if isinstance(args, str) else (raw_mode, *args[1:])


def _without_what_is_broken(file: Path | IO[bytes]) -> Image.Image | None:
    """The picture, decoded without some of its metadata; None if it is not these that are broken."""
    if not _content(file, 8).startswith(REPAIRABLE):
        return None
    for kept, info in without_metadata(_content(file)):
        try:
            picture = _opened(io.BytesIO(kept))
            picture.info.update(info)
            return _loaded(picture)
        except Exception:  # noqa: BLE001 - the first error is the one to tell
            continue
    return None


def _content(file: Path | IO[bytes], num_bytes: int = -1) -> bytes:
    """The first bytes of a file, by default all; none if it cannot be read."""
    try:
        if isinstance(file, Path):
            with file.open("rb") as opened:
                return opened.read(num_bytes)
        place = file.tell()
        file.seek(0)
        content = file.read(num_bytes)
        file.seek(place)
    except (OSError, ValueError):  # ValueError: it was closed
        return b""
    return content


class _MissingDecoderError(ValueError):
    """A file of a kind that Pillow reads only with another library."""


def _can_learn_to_read(start: bytes, name: str) -> bool:
    """Whether Pillow reads a file once `pillow-heif` has told it how to.

    Raises: ValueError if it would, and the library is not there.
    """
    brands = struct.unpack_from("4s4x4s4s", start, 8) if start[4:8] == b"ftyp" and len(start) >= 24 else ()
    if any(brand in _AVIF_BRANDS for brand in brands) and not features.check("avif"):
        raise _MissingDecoderError(
            f"{name} is an AVIF image, which this Pillow was built without: pip install -U pillow"
        )
    if not any(brand in _HEIC_BRANDS for brand in brands):
        return False
    try:
        import pillow_heif  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise _MissingDecoderError(
            f"{name} is a HEIC image, which Pillow reads only with pillow-heif: pip install 'imagegpt[heif]', "
            "or convert it, for example to PNG"
        ) from None
    pillow_heif.register_heif_opener()
    return True


def _unreadable(name: str, error: Exception) -> ValueError:
    if isinstance(error, UnidentifiedImageError):
        return ValueError(f"{name} is not an image that Pillow can read: convert it, for example to PNG")
    reason = " ".join(str(error).split()).rstrip(".")
    return ValueError(f"{name} cannot be decoded, it may be truncated ({reason}): check the file")
