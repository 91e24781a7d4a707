"""The colours of a picture: Pillow's modes, transparency and colour profiles become 8-bit RGB as sRGB means it.

A large picture is converted some rows at a time, so that no step needs more memory than the picture itself.

Axis letters: H height, W width.
"""

import functools
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms

_STRIP_PIXELS = 1 << 22
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")  # and those that start with "I;16"
_SAME_LEVELS = 2  # how far profiles of sRGB are from each other, by the rounding of their tables


def picture_to_rgb(picture: Image.Image, background: tuple[int, int, int], convert: bool = True) -> Image.Image:
    """A decoded picture of any Pillow mode as RGB, on the background; itself if it is that already.

    Args:
        picture: not empty.
        background: laid behind transparent pixels, (red, green, blue), 0 to 255.
        convert: False refuses what is not RGB already.
    Raises: ValueError for values outside the range of mode I, 0 to 65,535, or F, 0 to 1.
    """
    if not convert and (picture.mode != "RGB" or picture.has_transparency_data):
        raise not_rgb(f"the image has mode {picture.mode!r}{' and transparency' * (picture.mode == 'RGB')}")
    to_srgb = _colour_management(picture)
    if picture.mode == "RGB" and not picture.has_transparency_data and to_srgb is None:
        return picture
    _check_levels(picture)
    strips = list(_strips(picture.height, picture.width))
    if len(strips) == 1:
        return _strip_to_rgb(picture, background, to_srgb)
    rgb = Image.new("RGB", picture.size)
    for rows in strips:
        box = (0, rows.start, picture.width, rows.stop)
        rgb.paste(_strip_to_rgb(picture.crop(box), background, to_srgb), box)
    return rgb


def not_rgb(what: str) -> ValueError:
    """The error for images that may not be converted."""
    return ValueError(f"{what} and do_convert_rgb is False: give RGB images, or set do_convert_rgb to True")


def bytes_of(values: np.ndarray) -> UInt8[np.ndarray, "..."]:
    """Array values as uint8: bool, uint8, uint16 over its full range, or floats in [0, 1], rounded to the nearest.

    Raises: ValueError for other types, and floats outside this range.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype == np.uint16:
        return _by_strips(values, _from_16_bits)
    if values.dtype.kind != "f":
        raise ValueError(f"the image's values are {values.dtype}: give uint8, bool, uint16 or floats in [0, 1]")
    _check_floats(values.min(), values.max())
    return _by_strips(values, _from_floats)


def _by_strips(values: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    result = np.empty(values.shape, np.uint8)
    for rows in _strips(len(values), values[0].size):
        result[rows] = convert(values[rows])
    return result


def _strips(height: int, width: int) -> Iterator[slice]:
    """The rows of a picture, some at a time."""
    num_rows = max(1, _STRIP_PIXELS // width)
    return (slice(top, min(top + num_rows, height)) for top in range(0, height, num_rows))


def _from_16_bits(values: np.ndarray) -> np.ndarray:
    return ((values.astype(np.uint32) * 255 + 32_767) // 65_535).astype(np.uint8)


def _from_floats(values: np.ndarray) -> np.ndarray:
    return np.rint(values.astype(np.float64) * 255).astype(np.uint8)


def _check_levels(picture: Image.Image) -> None:
    """See that 32-bit pixels are in range, without a copy of the whole picture."""
    if picture.mode not in ("I", "F"):
        return
    width = picture.width
    lows, highs = [], []
    for rows in _strips(picture.height, width):
        strip = np.asarray(picture.crop((0, rows.start, width, rows.stop)))
        lows.append(strip.min())
        highs.append(strip.max())
    low, high = np.min(lows), np.max(highs)
    if picture.mode == "F":
        _check_floats(low, high)
    elif low < 0 or high > 65_535:
        raise ValueError(f"the image of mode I holds {low} to {high}: its values must lie in 0 to 65535")


def _check_floats(low: Any, high: Any) -> None:
    if np.isnan(low) or np.isnan(high):
        raise ValueError("the image holds NaN: floats must lie in 0 to 1")
    if low < 0 or high > 1:
        raise ValueError(f"the image's floats run from {low:.6g} to {high:.6g}: they must lie in 0 to 1, or be uint8")


def _strip_to_rgb(
    picture: Image.Image, background: tuple[int, int, int], to_srgb: ImageCms.ImageCmsTransform | None
) -> Image.Image:
    """Some rows of a picture, or all, as RGB."""
    if picture.mode == "LAB":
        return _transformed(picture, _lab_to_srgb())
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        picture = _reduced_to_8_bits(picture)
    if picture.mode == "La":  # premultiplied grey, which Pillow converts to LA only
        picture = picture.convert("LA")
    alpha = None
    if picture.has_transparency_data or picture.mode in ("LA", "PA", "RGBa"):
        picture = picture.convert("RGBA")
        alpha = picture.getchannel("A")
    if to_srgb is not None:
        rgb = _transformed(picture.convert(to_srgb.input_mode), to_srgb)
        if alpha is not None:
            rgb.putalpha(alpha)
        picture = rgb
    if alpha is not None:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (*background, 255)), picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _reduced_to_8_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits, or of mode I or F, as L; as LA if one of its levels is transparent."""
    values, key = np.asarray(picture), picture.info.get("transparency")
    grey = Image.fromarray(_from_floats(values) if picture.mode == "F" else _from_16_bits(values))
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _colour_management(picture: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """What makes sRGB of the picture's colours; None if they are sRGB, or no legible profile fits them."""
    profile = picture.info.get("icc_profile")
    if not isinstance(profile, bytes) or not profile or picture.mode == "LAB":
        return None
    is_grey = picture.mode in _GREY_MODES or picture.mode.startswith("I;16")
    return _to_srgb(profile, "L" if is_grey else "CMYK" if picture.mode == "CMYK" else "RGB")


@functools.lru_cache(maxsize=16)  # the pictures of a camera share theirs, and making one takes milliseconds
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        opened = ImageCms.getOpenProfile(io.BytesIO(profile))
        parsed: Any = opened.profile
        if parsed.xcolor_space.strip() != {"L": "GRAY"}.get(mode, mode):
            return None
        transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode == "CMYK":
            return transform
        levels = np.linspace(0, 255, 18).astype(np.uint8)
        colours = (
            levels[:, None] if mode == "L" else np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 18, 3)
        )
        given = Image.fromarray(colours)
        after = np.asarray(_transformed(given, transform)).astype(int)
    except Exception:  # noqa: BLE001 - whatever a broken profile leads LittleCMS to: the pixels are good without it
        return None
    return None if np.abs(after - np.asarray(given.convert("RGB"))).max() <= _SAME_LEVELS else transform


def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


def _transformed(picture: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    converted = ImageCms.applyTransform(picture, transform)
    assert converted is not None, "it is None only for conversions in place"
    return converted
