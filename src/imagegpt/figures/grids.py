"""Grids of images: completions beside their originals, samples, palettes.

Small images are enlarged by integer factors without smoothing, so that a pixel stays a square. Pixels that are hidden
from the model, or not sampled yet, are hatched in blue, which cannot be mistaken for a grey, black or white pixel.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

from imagegpt.common.memory import check_memory
from imagegpt.common.text import printable

_PAPER, _INK, _FAINT, _FRAME = (255, 255, 255), (32, 33, 36), (110, 114, 122), (205, 208, 214)
_HATCH = (224, 232, 245), (150, 176, 219)  # background, stripes
_CELL = 96  # approximate size of an enlarged image in pixels
_GAP, _GROUP_GAP, _MARGIN = 6, 18, 16
_CAPTION_SIZE = 15
_HEADER = _CAPTION_SIZE + 10
_COLUMNS = 8  # maximum number of completions in a row
_PALETTE_COLUMNS, _SWATCH = 32, 16  # colours in a row, and the side of each square in pixels


def completion_grid(
    originals: Sequence[Image.Image],
    visible: int | Bool[np.ndarray, "h w"],
    completions: Sequence[Sequence[Image.Image]],
    labels: Sequence[str] | None = None,
    *,
    num_shown: int | None = None,
) -> Image.Image:
    """Draw one row per image: the original, its visible pixels, and its completions.

    Args:
        originals: images of one size, as the model sees them.
        visible: the number of visible pixels, in raster order, or a mask of them.
        completions: for each original the same number of images; more than 8 continue in the next line.
        labels: captions of the originals, or None.
        num_shown: pixels to show of each completion; None means all.
    Returns: an RGB image.
    Raises: ValueError if there are no images or their sizes differ.
    """
    _check_sizes([*originals, *(image for several in completions for image in several)])
    width, height = originals[0].size
    columns = min(_COLUMNS, len(completions[0]))
    canvas = _Canvas(originals[0].size)
    canvas.open(*completion_grid_size(len(originals), len(completions[0]), originals[0].size, labels is not None))
    label_height, block_height = _block(len(completions[0]), canvas.cell[1], labels is not None)
    lefts = [_MARGIN, _MARGIN + canvas.cell[0] + _GROUP_GAP]
    lefts += [lefts[1] + _GROUP_GAP + (canvas.cell[0] + _GAP) * i + canvas.cell[0] for i in range(columns)]

    num_visible = visible if isinstance(visible, int) else int(visible.sum())
    percent = f"{100 * num_visible / (width * height):.3g} %"
    for left, caption in zip(lefts, ("original", f"kept {percent}", "completions"), strict=False):
        canvas.write(left, _MARGIN, caption, _INK)
    for row, original in enumerate(originals):
        top = _MARGIN + _HEADER + row * block_height
        if labels is not None:
            canvas.write(lefts[0], top, labels[row], _FAINT)
        top += label_height
        canvas.paste(original, lefts[0], top)
        canvas.paste(original, lefts[1], top, visible)
        for index, completion in enumerate(completions[row]):
            line, column = divmod(index, columns)
            canvas.paste(completion, lefts[2 + column], top + line * (canvas.cell[1] + _GAP), num_shown)
    return canvas.image


def sample_grid(images: Sequence[Image.Image], *, num_shown: int | None = None) -> Image.Image:
    """Draw images in a grid that is as square as possible, row by row.

    Args:
        images: at least one, all of one size.
        num_shown: pixels to show of each image; None means all.
    Returns: an RGB image.
    Raises: ValueError if there are no images or their sizes differ.
    """
    _check_sizes(images)
    columns = _columns(len(images))
    canvas = _Canvas(images[0].size)
    canvas.open(*sample_grid_size(len(images), images[0].size))
    step_x, step_y = canvas.cell[0] + _GAP, canvas.cell[1] + _GAP
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        canvas.paste(image, _MARGIN + column * step_x, _MARGIN + row * step_y, num_shown)
    return canvas.image


def completion_grid_size(
    num_originals: int, num_completions: int, image_size: tuple[int, int], has_labels: bool
) -> tuple[int, int]:
    """Return (width, height) of a `completion_grid`, for images of size (width, height).

    Raises: ValueError if there is not enough memory for it.
    """
    cell, columns = _cell(image_size), min(_COLUMNS, num_completions)
    _, block_height = _block(num_completions, cell[1], has_labels)
    width = 2 * _MARGIN + 2 * _GROUP_GAP + (2 + columns) * cell[0] + (columns - 1) * _GAP
    return _checked_size(width, 2 * _MARGIN + _HEADER + block_height * num_originals - 2 * _GAP)


def sample_grid_size(num: int, image_size: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) of a `sample_grid`, for images of size (width, height).

    Raises: ValueError if there is not enough memory for it.
    """
    cell, columns = _cell(image_size), _columns(num)
    lines = -(-num // columns)
    width, height = columns * (cell[0] + _GAP), lines * (cell[1] + _GAP)
    return _checked_size(2 * _MARGIN + width - _GAP, 2 * _MARGIN + height - _GAP)


def palette_grid(rgb: UInt8[np.ndarray, "v 3"]) -> Image.Image:
    """Draw the colours of a palette in order, as squares, 32 per row.

    Returns: an RGB image.
    """
    columns = min(_PALETTE_COLUMNS, len(rgb))
    lines = -(-len(rgb) // columns)
    step = _SWATCH + 1
    canvas = Image.new("RGB", (2 * _MARGIN + columns * step - 1, 2 * _MARGIN + lines * step - 1), _PAPER)
    pen = ImageDraw.Draw(canvas)
    for index, color in enumerate(rgb.tolist()):
        line, column = divmod(index, columns)
        left, top = _MARGIN + column * step, _MARGIN + line * step
        pen.rectangle((left, top, left + _SWATCH - 1, top + _SWATCH - 1), fill=tuple(color))
    return canvas


def before_after_grid(before: Sequence[Image.Image], after: Sequence[Image.Image]) -> Image.Image:
    """Draw pairs of images, the first above the second, 8 pairs per row.

    Args:
        before: images of one size.
        after: as many images of the same size.
    Returns: an RGB image.
    Raises: ValueError if there are no images, or their numbers or sizes differ.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} images before and {len(after)} after were given: give the same number of both")
    _check_sizes([*before, *after])
    columns = min(_COLUMNS, len(before))
    canvas = _Canvas(before[0].size)
    step_x, step_y = canvas.cell[0] + _GAP, 2 * canvas.cell[1] + _GROUP_GAP
    lines = -(-len(before) // columns)
    canvas.open(2 * _MARGIN + columns * step_x - _GAP, 2 * _MARGIN + lines * step_y - _GROUP_GAP)
    for index, pair in enumerate(zip(before, after, strict=True)):
        line, column = divmod(index, columns)
        for row, image in enumerate(pair):
            canvas.paste(image, _MARGIN + column * step_x, _MARGIN + line * step_y + row * canvas.cell[1])
    return canvas.image


class _Canvas:
    """A picture composed of framed, enlarged images of one size."""

    def __init__(self, image_size: tuple[int, int]) -> None:
        self.image_size, self.factor, self.cell = image_size, _factor(image_size), _cell(image_size)
        self.font = ImageFont.load_default(_CAPTION_SIZE)

    def open(self, width: int, height: int) -> None:
        """Create the blank picture."""
        self.image = Image.new("RGB", (width, height), _PAPER)
        self.pen = ImageDraw.Draw(self.image)

    def write(self, left: int, top: int, text: str, ink: tuple[int, int, int]) -> None:
        """Write one line of text, cut off with an ellipsis at the right margin."""
        room = self.image.width - left - _MARGIN
        text = shown = printable(text)
        while len(shown) > 1 and self.font.getlength(shown) > room:
            shown = shown.rstrip("…")[:-1] + "…"
        self.pen.text((left, top), shown, fill=ink, font=self.font)

    def paste(
        self, image: Image.Image, left: int, top: int, shown: int | Bool[np.ndarray, "h w"] | None = None
    ) -> None:
        """Paste an image with a thin frame, hatched except for its first `shown` pixels, or those of a mask."""
        right, bottom = left + self.cell[0] - 1, top + self.cell[1] - 1
        self.pen.rectangle((left, top, right, bottom), outline=_FRAME)
        enlarged = self._enlarge(image.convert("RGB"))
        if shown is None:
            self.image.paste(enlarged, (left + 1, top + 1))
            return
        self.image.paste(_hatching(enlarged.size), (left + 1, top + 1))
        mask = _first_pixels(self.image_size, shown) if isinstance(shown, int) else Image.fromarray(shown).convert("L")
        self.image.paste(enlarged, (left + 1, top + 1), self._enlarge(mask))

    def _enlarge(self, image: Image.Image) -> Image.Image:
        size = (image.width * self.factor, image.height * self.factor)
        return image.resize(size, Image.Resampling.NEAREST)


def _factor(image_size: tuple[int, int]) -> int:
    return max(1, round(_CELL / max(image_size)))


def _cell(image_size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of an enlarged image with its frame."""
    factor = _factor(image_size)
    return image_size[0] * factor + 2, image_size[1] * factor + 2


def _columns(num: int) -> int:
    return math.ceil(math.sqrt(num))


def _block(num_completions: int, cell_height: int, has_labels: bool) -> tuple[int, int]:
    """Height of a label, and of an original with all its completions."""
    label = _CAPTION_SIZE + 6 if has_labels else 0
    lines = -(-num_completions // _COLUMNS)
    return label, label + lines * (cell_height + _GAP) + _GAP


def _checked_size(width: int, height: int) -> tuple[int, int]:
    what = f"a picture of {width:,} x {height:,} pixels"
    check_memory(what, 3 * width * height, "ask for fewer images, or write individual files")
    return width, height


def _first_pixels(size: tuple[int, int], num: int) -> Image.Image:
    """Return a mask that is white for the first `num` pixels in raster order."""
    mask = Image.new("L", size, 0)
    full_rows, rest = divmod(num, size[0])
    mask.paste(255, (0, 0, size[0], full_rows))
    mask.paste(255, (0, full_rows, rest, min(full_rows + 1, size[1])))
    return mask


def _hatching(size: tuple[int, int]) -> Image.Image:
    ground, stripe = _HATCH
    image = Image.new("RGB", size, ground)
    pen = ImageDraw.Draw(image)
    for start in range(-size[1], size[0], 8):
        pen.line((start, size[1], start + size[1], 0), fill=stripe, width=2)
    return image


def _check_sizes(images: Sequence[Image.Image]) -> None:
    if not images:
        raise ValueError("there are no images to draw: give at least one")
    sizes = sorted({image.size for image in images})
    if len(sizes) > 1:
        raise ValueError(
            f"the images differ in width and height ({', '.join(map(str, sizes))}): give images of one size"
        )
