"""Conversion of any Pillow mode to 8-bit sRGB, including transparency, colour profiles and 16-bit or float pixels.

Large images are converted in strips of rows, so that no step needs more memory than the image itself.

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
_SRGB_TOLERANCE = 2  # levels by which sRGB profiles differ from each other, due to rounded tables


def convert_to_rgb(image: Image.Image, background: tuple[int, int, int], convert: bool = True) -> Image.Image:
    """Convert a decoded image of any Pillow mode to RGB, composited onto a background; RGB is returned unchanged.

    Args:
        image: not empty.
        background: behind transparent pixels, (red, green, blue), 0 to 255.
        convert: False refuses images that are not RGB.
    Raises: ValueError for values outside the range of mode I, 0 to 65,535, or F, 0 to 1.
    """
    if not convert and (image.mode != "RGB" or image.has_transparency_data):
        raise not_rgb_error(f"the image has mode {image.mode!r}{' and transparency' * (image.mode == 'RGB')}")
    to_srgb = _color_transform(image)
    if image.mode == "RGB" and not image.has_transparency_data and to_srgb is None:
        return image
    _check_levels(image)
    strips = list(_strips(image.height, image.width))
    if len(strips) == 1:
        return _strip_to_rgb(image, background, to_srgb)
    rgb = Image.new("RGB", image.size)
    for rows in strips:
        box = (0, rows.start, image.width, rows.stop)
        rgb.paste(_strip_to_rgb(image.crop(box), background, to_srgb), box)
    return rgb


def not_rgb_error(problem: str) -> ValueError:
    """Return the error for images that `do_convert_rgb=False` refuses."""
    return ValueError(f"{problem} and do_convert_rgb is False: give RGB images, or set do_convert_rgb to True")


def to_uint8(values: np.ndarray) -> UInt8[np.ndarray, "..."]:
    """Convert an array of bool, uint8, uint16 (full range) or floats in [0, 1] to uint8, rounded to nearest.

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
    """Return slices that divide the rows of an image into strips."""
    num_rows = max(1, _STRIP_PIXELS // width)
    return (slice(top, min(top + num_rows, height)) for top in range(0, height, num_rows))


def _from_16_bits(values: np.ndarray) -> np.ndarray:
    return ((values.astype(np.uint32) * 255 + 32_767) // 65_535).astype(np.uint8)


def _from_floats(values: np.ndarray) -> np.ndarray:
    return np.rint(values.astype(np.float64) * 255).astype(np.uint8)


def _check_levels(image: Image.Image) -> None:
    """Check that 32-bit pixels are in range, without copying the whole image."""
    if image.mode not in ("I", "F"):
        return
    width = image.width
    lows, highs = [], []
    for rows in _strips(image.height, width):
        strip = np.asarray(image.crop((0, rows.start, width, rows.stop)))
        lows.append(strip.min())
        highs.append(strip.max())
    low, high = np.min(lows), np.max(highs)
    if image.mode == "F":
        _check_floats(low, high)
    elif low < 0 or high > 65_535:
        raise ValueError(f"the image of mode I has values {low} to {high}: they must be 0 to 65535")


def _check_floats(low: Any, high: Any) -> None:
    if np.isnan(low) or np.isnan(high):
        raise ValueError("the image contains NaN: floats must be 0 to 1")
    if low < 0 or high > 1:
        raise ValueError(f"the image's floats range from {low:.6g} to {high:.6g}: they must be 0 to 1, or be uint8")


def _strip_to_rgb(
    image: Image.Image, background: tuple[int, int, int], to_srgb: ImageCms.ImageCmsTransform | None
) -> Image.Image:
    """Convert a strip of rows, or a whole image, to RGB."""
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return _apply_transform(image, ImageCms.buildTransform(*profiles, "LAB", "RGB"))
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _to_8_bits(image)
    if image.mode == "La":  # premultiplied grey: Pillow only converts it to LA
        image = image.convert("LA")
    alpha = None
    if image.has_transparency_data or image.mode in ("LA", "PA", "RGBa"):
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if to_srgb is not None:
        rgb = _apply_transform(image.convert(to_srgb.input_mode), to_srgb)
        if alpha is not None:
            rgb.putalpha(alpha)
        image = rgb
    if alpha is not None:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Convert 16-bit grey, or mode I or F, to L, or to LA if one level is transparent."""
    values, key = np.asarray(image), image.info.get("transparency")
    grey = Image.fromarray(_from_floats(values) if image.mode == "F" else _from_16_bits(values))
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _color_transform(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from the image's colour profile to sRGB; None if it is sRGB, or not a usable profile."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not profile or image.mode == "LAB":
        return None
    is_grey = image.mode in _GREY_MODES or image.mode.startswith("I;16")
    return _to_srgb(profile, "L" if is_grey else "CMYK" if image.mode == "CMYK" else "RGB")


@functools.lru_cache(maxsize=16)  # images of one camera share a profile, and building a transform takes milliseconds
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
        colors = (
            levels[:, None] if mode == "L" else np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 18, 3)
        )
        samples = Image.fromarray(colors)
        transformed = np.asarray(_apply_transform(samples, transform)).astype(int)
    except Exception:  # noqa: BLE001 - a broken profile can raise anything in LittleCMS; use the pixels without it
        return None
    return None if np.abs(transformed - np.asarray(samples.convert("RGB"))).max() <= _SRGB_TOLERANCE else transform


def _apply_transform(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None, "only in-place conversions return None"
    return converted
