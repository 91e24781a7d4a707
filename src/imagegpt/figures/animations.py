"""Animations that reveal the images of a grid in the order in which the model sampled their pixels."""

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from imagegpt.common.memory import check_memory

_MAX_STEPS = 64
_FRAME_MS, _LAST_FRAME_MS = 80, 2000
_MAX_GIF_SIDE = 65_535  # pixels: the format stores 16 bits


def check_gif_size(size: tuple[int, int], image_size: tuple[int, int], num_visible: int = 0) -> None:
    """Check that a GIF of this size is possible, before the images are sampled.

    Args:
        size: (width, height) of a frame; the other arguments are those of `reveal_frames`.
    Raises: ValueError if the frames are too large for the format, or the animation for the memory.
    """
    width, height = size
    if max(size) > _MAX_GIF_SIDE:
        raise ValueError(
            f"the animation would be {width} x {height} pixels, a GIF has at most {_MAX_GIF_SIDE} a side: "
            "leave out --gif, or ask for fewer images"
        )
    num_frames = len(_steps(image_size, num_visible))
    what = f"an animation of {num_frames} frames of {width:,} x {height:,} pixels"
    check_memory(what, num_frames * width * height, "leave out --gif, or ask for fewer images")


def reveal_frames(
    draw_grid: Callable[[int], Image.Image], image_size: tuple[int, int], num_visible: int = 0
) -> Iterator[Image.Image]:
    """Draw the frames of a GIF that reveals the images of a grid in raster order.

    Each frame adds one pixel to each image; a whole row if more than 64 pixels are missing, and several rows if more
    than 64 rows are. There are at most 65 frames.

    Args:
        draw_grid: draws the grid with that many pixels of each image shown, as an RGB image of constant size:
            `lambda num: sample_grid(images, num_shown=num)`.
        image_size: (width, height) of the images in the grid, before enlargement.
        num_visible: pixels of each image that are visible in the first frame.
    Returns: frames of mode "P", drawn lazily because they may be large. They share one palette, so that colours do not
        flicker; colours are exact if the first and last frame have at most 256 together, else the nearest of 256.
        `info["duration"]` is the time each frame is shown, in milliseconds, for Pillow's GIF writer.
    Raises: ValueError if there is no pixel to reveal.
    """
    num_pixels = image_size[0] * image_size[1]
    if not 0 <= num_visible < num_pixels:
        raise ValueError(
            f"{num_visible} pixels are visible from the start, an image has {num_pixels}: leave at least one to reveal"
        )
    first, last = draw_grid(num_visible), draw_grid(num_pixels)
    both = Image.fromarray(np.concatenate([np.asarray(first), np.asarray(last)]))
    quantized = both.quantize(256, dither=Image.Dither.NONE)
    first_indices, last_indices = np.split(np.asarray(quantized), 2)
    first_colors = _colors(first)

    def frame(num_shown: int) -> Image.Image:
        # Each pixel has its colour of either the first or the last frame, so no colour needs to be looked up. Pillow's
        # `quantize(palette=...)` looks colours up approximately and may not return the nearest one.
        unchanged = _colors(draw_grid(num_shown)) == first_colors
        indexed = Image.fromarray(np.where(unchanged, first_indices, last_indices))
        indexed.putpalette(quantized.getpalette() or [])
        indexed.info["duration"] = _LAST_FRAME_MS if num_shown == num_pixels else _FRAME_MS
        return indexed

    return map(frame, _steps(image_size, num_visible))


def _steps(image_size: tuple[int, int], num_visible: int) -> list[int]:
    """Number of pixels shown in each frame; from the second frame on, rows are complete."""
    width, height = image_size
    if width * height - num_visible <= _MAX_STEPS:
        return list(range(num_visible, width * height + 1))
    first_row = num_visible // width
    rows_per_step = -(-(height - first_row) // _MAX_STEPS)
    return [
        num_visible,
        *(width * row for row in range(first_row + rows_per_step, height, rows_per_step)),
        width * height,
    ]


def _colors(image: Image.Image) -> np.ndarray:
    """The colours of an RGB image as one integer per pixel, (height, width)."""
    return np.asarray(image.convert("RGBA")).view(np.uint32)[..., 0]
