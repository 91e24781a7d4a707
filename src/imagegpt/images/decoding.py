"""Opening and decoding of image files with Pillow: repair, orientation, 16-bit transparency, one-sentence errors."""

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

from imagegpt.images.metadata import REPAIRABLE, apply_orientation, strip_metadata

OPTIONAL_SUFFIXES = (".avif", ".heic", ".heif")  # of images that Pillow may need an extra library for

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_GREY_SCALES = {"L": 255, "L;4": 15, "L;2": 3}  # maximum level in a PNG file, by Pillow's raw mode
_RGB_16_BIT, _GREY_ALPHA_16_BIT = "RGB;16B", "LA;16B"
# Raw modes with which Pillow decodes the low byte of each 16-bit value instead of the high one: swapped byte order.
# Grey with alpha is read as four 8-bit channels, of which the second and fourth are the low bytes.
_SWAPPED_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_LOW_BYTE_MODES = {
    f"{kind};16{order}": f"{kind.upper()};16{other}"
    for kind in ("RGB", "RGBA", "RGBX", "RGBa")
    for order, other in _SWAPPED_ORDER.items()
} | {_GREY_ALPHA_16_BIT: "RGBA"}


def open_image(file: Path | IO[bytes], name: str) -> Image.Image:
    """Open an image file without decoding its pixels.

    Raises: ValueError, with the name in it, if Pillow cannot read it or it has more pixels than Pillow allows.
    """
    try:
        try:
            return _open(file)
        except UnidentifiedImageError:
            if not _register_decoder(_read_bytes(file, 24), name):
                raise
            return _open(file)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{name} has more pixels than Pillow's limit of {Image.MAX_IMAGE_PIXELS:,}: shrink the image first"
        ) from error
    except MemoryError as error:
        raise out_of_memory_error(name) from error
    except _MissingDecoderError:
        raise
    except Exception as error:  # Pillow's parsers can raise anything on damaged files
        if isinstance(error, OSError) and error.strerror:  # an error of the system, not of Pillow
            raise ValueError(f"{name} cannot be opened ({error.strerror}): check the file") from error
        if (image := _open_repaired(file)) is not None:
            return image
        raise _unreadable_error(name, error) from error


def decode_image(image: Image.Image, name: str) -> Image.Image:
    """Decode the pixels, apply the orientation, and scale the transparent colour like the pixels.

    Args:
        image: opened by Pillow, or created in memory.
    Raises: ValueError, with the name in it, if it has no pixels or they are damaged.
    """
    if not (image.width and image.height):
        raise ValueError(f"{name} is {image.width}x{image.height} pixels: it must have at least one")
    file = getattr(image, "fp", None)
    try:
        return apply_orientation(_load(image))
    except MemoryError as error:
        raise out_of_memory_error(name) from error
    except Exception as error:  # Pillow's decoders can raise anything on damaged files
        if (path := getattr(image, "filename", "")) != "":
            file = Path(os.fsdecode(path))
        if file is not None and (repaired := _open_repaired(file)) is not None:
            return apply_orientation(repaired)
        raise _unreadable_error(name, error) from error


def out_of_memory_error(name: str) -> ValueError:
    """Return the error for an image that does not fit into memory."""
    return ValueError(f"{name} needs more memory than there is: shrink the image first")


def load_low_bytes(image: Image.Image) -> Image.Image | None:
    """Decode the low bytes of a 16-bit RGB or RGBA image in a PNG or TIFF file; Pillow itself keeps the high bytes.

    Args:
        image: opened, but not decoded yet.
    Returns: None for all other images, and if the file is damaged.
    """
    raw_mode = _raw_mode(image)
    if raw_mode not in _LOW_BYTE_MODES or not isinstance(image, ImageFile) or image.fp is None:
        return None
    try:
        other = _open(io.BytesIO(_read_bytes(image.fp)))
        other.tile = [
            tile._replace(args=_replace_raw_mode(tile.args, _LOW_BYTE_MODES[raw_mode])) for tile in other.tile
        ]
        other.load()
    except Exception:  # noqa: BLE001 - decoding the image itself reports the error
        return None
    if raw_mode == _GREY_ALPHA_16_BIT:
        grey, alpha = other.getchannel(1), other.getchannel(3)
        return Image.merge("RGBA", (grey, grey, grey, alpha))
    return other


def _open(file: Path | IO[bytes]) -> ImageFile:
    # Up to twice its limit against decompression bombs, Pillow only warns.
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(file)
    if image.format == "EPS":
        if isinstance(file, Path):  # otherwise the caller closes it
            image.close()
        raise UnidentifiedImageError("it is PostScript, a program that Pillow would run with Ghostscript")
    return image


def _load(image: Image.Image) -> Image.Image:
    """Decode the pixels, and convert the transparent colour of a PNG file from the file's bit depth to theirs."""
    key, raw_mode = image.info.get("transparency"), _raw_mode(image)
    if raw_mode == _RGB_16_BIT and image.format == "PNG" and isinstance(key, tuple):
        return _apply_16_bit_key(image, np.array(key, np.uint16))
    if raw_mode in _GREY_SCALES and isinstance(key, int):
        max_level = _GREY_SCALES[raw_mode]
        image.info["transparency"] = (key & max_level) * (255 // max_level)
    elif raw_mode == "RGB" and isinstance(key, tuple):
        image.info["transparency"] = tuple(value & 255 for value in key)
    image.load()
    if image.mode == "P" and image.palette is None:  # in a PNG file, missing or after the pixels
        raise ValueError("it has no palette before its pixels")
    return image


def _apply_16_bit_key(image: Image.Image, key: np.ndarray) -> Image.Image:
    """Convert 16-bit RGB to RGBA, transparent where all 16 bits equal the transparent colour."""
    low_bytes = load_low_bytes(image)
    image.load()
    is_key = np.ones((image.height, image.width), bool)
    for channel in range(3):
        is_key &= np.asarray(image.getchannel(channel)) == key[channel] >> 8
        if low_bytes is not None:
            is_key &= np.asarray(low_bytes.getchannel(channel)) == key[channel] & 255
    opaque = image.copy()
    del opaque.info["transparency"]
    opaque.putalpha(Image.fromarray(np.where(is_key, 0, 255).astype(np.uint8)))
    return opaque


def _raw_mode(image: Image.Image) -> str | None:
    """Return Pillow's raw mode of an undecoded PNG or TIFF file, such as "L;2"; None for other images."""
    tiles = getattr(image, "tile", None)
    if image.format not in ("PNG", "TIFF") or not tiles:
        return None
    args: Any = tiles[0][3]
    return args if isinstance(args, str) else args[0]


def _replace_raw_mode(args: Any, raw_mode: str) -> Any:
    return raw_mode if isinstance(args, str) else (raw_mode, *args[1:])


def _open_repaired(file: Path | IO[bytes]) -> Image.Image | None:
    """Decode the image without some of its metadata; None if that does not help."""
    if not _read_bytes(file, 8).startswith(REPAIRABLE):
        return None
    for stripped, info in strip_metadata(_read_bytes(file)):
        try:
            image = _open(io.BytesIO(stripped))
            image.info.update(info)
            return _load(image)
        except Exception:  # noqa: BLE001 - the caller reports the first error
            continue
    return None


def _read_bytes(file: Path | IO[bytes], num_bytes: int = -1) -> bytes:
    """Read the first bytes of a file, by default all; return none if it cannot be read."""
    try:
        if isinstance(file, Path):
            with file.open("rb") as opened:
                return opened.read(num_bytes)
        position = file.tell()
        file.seek(0)
        content = file.read(num_bytes)
        file.seek(position)
    except (OSError, ValueError):  # ValueError: it was closed
        return b""
    return content


class _MissingDecoderError(ValueError):
    """Raised for a format that Pillow supports only with an extra library."""


def _register_decoder(start: bytes, name: str) -> bool:
    """Register `pillow-heif` with Pillow if a file needs it; return whether it does.

    Raises: ValueError if it needs a library that is not installed.
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


def _unreadable_error(name: str, error: Exception) -> ValueError:
    if isinstance(error, UnidentifiedImageError):
        return ValueError(f"{name} is not an image that Pillow can read: convert it, for example to PNG")
    reason = " ".join(str(error).split()).rstrip(".")
    return ValueError(f"{name} cannot be decoded, it may be truncated ({reason}): check the file")
