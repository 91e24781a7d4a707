"""Animations: the images of a grid as the model drew them, pixel after pixel."""

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from imagegpt.common.memory import check_memory

_STEPS = 64  # at most
_FRAME_MS, _LAST_FRAME_MS = 80, 2000
_LARGEST_GIF = 65_535  # pixels a side: the format counts them in 16 bits


def check_gif_size(size: tuple[int, int], image_size: tuple[int, int], num_kept: int = 0) -> None:
    """See that a GIF can be made of frames of (width, height), before the slow work.

    Args:
        size: of a frame.
        image_size: as for `appearing`, as is num_kept.
        num_kept: likewise.
    Raises: ValueError, in one sentence, if the format or the memory has no room for it.
    """
    width, height = size
    if max(size) > _LARGEST_GIF:
        raise ValueError(
            f"the animation would be {width} x {height} pixels, a GIF has at most {_LARGEST_GIF} a side: "
            "leave out --gif, or ask for fewer images"
        )
    num_frames = len(_steps(image_size, num_kept))
    what = f"an animation of {num_frames} frames of {width:,} x {height:,} pixels"
    check_memory(what, num_frames * width * height, "leave out --gif, or ask for fewer images")


def appearing(
    grid_of: Callable[[int], Image.Image], image_size: tuple[int, int], num_kept: int = 0
) -> Iterator[Image.Image]:
    """Draw the frames of a GIF in which the images of a grid appear as the model drew them, in raster order.

    A frame adds a pixel to each image, or a row where more than 64 pixels are to come, or several where more than 64
    rows are: there are 65 frames at most.

    Args:
        grid_of: draws the grid with that many pixels of each image shown, an RGB image, always of one size:
            `lambda num: sample_grid(images, num_shown=num)`.
        image_size: (width, height) of an image of the grid, before it is enlarged.
        num_kept: pixels that are there from the start.
    Returns: frames of mode "P", drawn one at a time because they may be large, all with one palette, so that nothing
        flickers. Exact if the first and the last have at most 256 colours together, the nearest there are otherwise.
        `info["duration"]` says how long each is shown, in milliseconds; Pillow's GIF writer looks there.
    Raises: ValueError if there is nothing to appear.
    """
    num_pixels = image_size[0] * image_size[1]
    if not 0 <= num_kept < num_pixels:
        raise ValueError(
            f"{num_kept} pixels are there from the start, an image has {num_pixels}: leave at least one to appear"
        )
    first, last = grid_of(num_kept), grid_of(num_pixels)
    together = Image.fromarray(np.concatenate([np.asarray(first), np.asarray(last)]))
    reduced = together.quantize(256, dither=Image.Dither.NONE)
    first_indices, last_indices = np.split(np.asarray(reduced), 2)
    first_colors = _colors(first)

    def frame(num_shown: int) -> Image.Image:
        # A pixel is as in the first frame until it changes to what it is in the last, so that no colour is looked up.
        # Pillow's `quantize(palette=...)` would do that coarsely, and take a neighbouring colour for the nearest.
        unchanged = _colors(grid_of(num_shown)) == first_colors
        indexed = Image.fromarray(np.where(unchanged, first_indices, last_indices))
        indexed.putpalette(reduced.getpalette() or [])
        indexed.info["duration"] = _LAST_FRAME_MS if num_shown == num_pixels else _FRAME_MS
        return indexed

    return map(frame, _steps(image_size, num_kept))


def _steps(image_size: tuple[int, int], num_kept: int) -> list[int]:
    """How many pixels each frame shows, from those that are kept to all; rows are full from the second frame on."""
    width, height = image_size
    if width * height - num_kept <= _STEPS:
        return list(range(num_kept, width * height + 1))
    first_row = num_kept // width
    rows_a_step = -(-(height - first_row) // _STEPS)
    return [num_kept, *(width * row for row in range(first_row + rows_a_step, height, rows_a_step)), width * height]


def _colors(image: Image.Image) -> np.ndarray:
    """The colours of an RGB image as one number a pixel, (height, width)."""
    return np.asarray(image.convert("RGBA")).view(np.uint32)[..., 0]
