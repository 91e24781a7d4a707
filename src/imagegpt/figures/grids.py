"""Pictures to look at: completions beside what was kept of the original, and sheets of samples.

Small images are enlarged by whole factors without smoothing, so that a pixel stays a square. What the model has not
been shown, or has not drawn yet, is hatched in blue, which no grey, black or white pixel can be mistaken for.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

from imagegpt.common import ranges
from imagegpt.common.memory import check_memory
from imagegpt.common.text import printable

_PAPER, _INK, _FAINT, _FRAME = (255, 255, 255), (32, 33, 36), (110, 114, 122), (205, 208, 214)
_HATCH = (224, 232, 245), (150, 176, 219)  # between the stripes, the stripes
_CELL = 96  # pixels an image is enlarged to, as nearly as a whole factor can
_GAP, _GROUP_GAP, _MARGIN = 6, 18, 16
_CAPTION_SIZE = 15
_HEADER = _CAPTION_SIZE + 10
_COLUMNS = 8  # completions in a row
_PALETTE_COLUMNS, _SWATCH = 32, 16  # colours in a row, and the pixels a side of each


def completion_grid(
    originals: Sequence[Image.Image],
    kept: int | Bool[np.ndarray, "h w"],
    completions: Sequence[Sequence[Image.Image]],
    labels: Sequence[str] | None = None,
    *,
    num_shown: int | None = None,
) -> Image.Image:
    """Draw a row an image: the original, what was kept of it, and its completions.

    Args:
        originals: all of one size, as the model sees them.
        kept: how many pixels were kept, in raster order, or which.
        completions: for each original equally many images of its size; more than 8 continue below.
        labels: for each original a caption, or None for none.
        num_shown: pixels of each completion that are there already; None means all.
    Returns: an RGB image.
    Raises: ValueError if there is nothing to draw or the counts or sizes differ.
    """
    _check_counts(originals, completions, labels)
    width, height = originals[0].size
    _check_kept(kept, originals[0].size)
    _check_pixels("shown", num_shown, originals[0].size)
    columns = min(_COLUMNS, len(completions[0]))
    sheet = _Sheet(originals[0].size)
    sheet.open(*completion_grid_size(len(originals), len(completions[0]), originals[0].size, labels is not None))
    label_height, block_height = _block(len(completions[0]), sheet.cell[1], labels is not None)
    lefts = [_MARGIN, _MARGIN + sheet.cell[0] + _GROUP_GAP]
    lefts += [lefts[1] + _GROUP_GAP + (sheet.cell[0] + _GAP) * i + sheet.cell[0] for i in range(columns)]

    num_kept = kept if isinstance(kept, int) else int(kept.sum())
    kept_percent = f"{100 * num_kept / (width * height):.3g} %"
    for left, caption in zip(lefts, ("original", f"kept {kept_percent}", "completions"), strict=False):
        sheet.write(left, _MARGIN, caption, _INK)
    for row, original in enumerate(originals):
        top = _MARGIN + _HEADER + row * block_height
        if labels is not None:
            sheet.write(lefts[0], top, labels[row], _FAINT)
        top += label_height
        sheet.paste(original, lefts[0], top)
        sheet.paste(original, lefts[1], top, kept)
        for index, completion in enumerate(completions[row]):
            line, column = divmod(index, columns)
            sheet.paste(completion, lefts[2 + column], top + line * (sheet.cell[1] + _GAP), num_shown)
    return sheet.canvas


def sample_grid(
    images: Sequence[Image.Image], columns: int | None = None, *, num_shown: int | None = None
) -> Image.Image:
    """Draw images of one size on a sheet, row by row.

    Args:
        images: at least one.
        columns: images in a row; None makes the sheet as square as can be.
        num_shown: pixels of each image that are there already; None means all.
    Returns: an RGB image.
    Raises: ValueError if there is nothing to draw or the sizes differ.
    """
    _check_sizes(images)
    _check_pixels("shown", num_shown, images[0].size)
    columns = _columns(len(images), columns)
    sheet = _Sheet(images[0].size)
    sheet.open(*sample_grid_size(len(images), images[0].size, columns))
    step_x, step_y = sheet.cell[0] + _GAP, sheet.cell[1] + _GAP
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(image, _MARGIN + column * step_x, _MARGIN + row * step_y, num_shown)
    return sheet.canvas


def completion_grid_size(
    num_originals: int, num_completions: int, image_size: tuple[int, int], has_labels: bool
) -> tuple[int, int]:
    """Width and height of `completion_grid` for so many images of that (width, height).

    Raises: ValueError if there is no memory for so large a picture.
    """
    cell, columns = _cell(image_size), min(_COLUMNS, num_completions)
    _, block_height = _block(num_completions, cell[1], has_labels)
    width = 2 * _MARGIN + 2 * _GROUP_GAP + (2 + columns) * cell[0] + (columns - 1) * _GAP
    return _checked_size(width, 2 * _MARGIN + _HEADER + block_height * num_originals - 2 * _GAP)


def sample_grid_size(num: int, image_size: tuple[int, int], columns: int | None = None) -> tuple[int, int]:
    """Width and height of `sample_grid` for so many images of that (width, height).

    Raises: ValueError if there is no memory for so large a picture.
    """
    cell, columns = _cell(image_size), _columns(num, columns)
    lines = -(-num // columns)
    width, height = columns * (cell[0] + _GAP), lines * (cell[1] + _GAP)
    return _checked_size(2 * _MARGIN + width - _GAP, 2 * _MARGIN + height - _GAP)


def palette_picture(rgb: UInt8[np.ndarray, "v 3"]) -> Image.Image:
    """Draw the colours of a palette as squares, 32 in a row, in their order.

    Args:
        rgb: the colours, `ColorPalette.rgb`.
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
    """Draw images above what became of them, 8 pairs in a row.

    Args:
        before: images of one size.
        after: for each of them another, of the same size.
    Returns: an RGB image.
    Raises: ValueError if there is nothing to draw or the counts or sizes differ.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} images before and {len(after)} after were given: give as many of both")
    _check_sizes([*before, *after])
    columns = min(_COLUMNS, len(before))
    sheet = _Sheet(before[0].size)
    step_x, step_y = sheet.cell[0] + _GAP, 2 * sheet.cell[1] + _GROUP_GAP
    lines = -(-len(before) // columns)
    sheet.open(2 * _MARGIN + columns * step_x - _GAP, 2 * _MARGIN + lines * step_y - _GROUP_GAP)
    for index, pair in enumerate(zip(before, after, strict=True)):
        line, column = divmod(index, columns)
        for row, image in enumerate(pair):
            sheet.paste(image, _MARGIN + column * step_x, _MARGIN + line * step_y + row * sheet.cell[1])
    return sheet.canvas


class _Sheet:
    """A canvas with framed, enlarged images of one size on it."""

    def __init__(self, image_size: tuple[int, int]) -> None:
        self.image_size, self.factor, self.cell = image_size, _factor(image_size), _cell(image_size)
        self.font = ImageFont.load_default(_CAPTION_SIZE)

    def open(self, width: int, height: int) -> None:
        """Start with blank paper."""
        self.canvas = Image.new("RGB", (width, height), _PAPER)
        self.pen = ImageDraw.Draw(self.canvas)

    def write(self, left: int, top: int, text: str, ink: tuple[int, int, int]) -> None:
        """Write a line, cut short with an ellipsis where the paper ends."""
        room = self.canvas.width - left - _MARGIN
        text = shown = printable(text)
        while len(shown) > 1 and self.font.getlength(shown) > room:
            shown = shown.rstrip("…")[:-1] + "…"
        self.pen.text((left, top), shown, fill=ink, font=self.font)

    def paste(
        self, image: Image.Image, left: int, top: int, shown: int | Bool[np.ndarray, "h w"] | None = None
    ) -> None:
        """Put an image at a place in a thin frame, hatched after the first `shown` pixels, or where they are not."""
        right, bottom = left + self.cell[0] - 1, top + self.cell[1] - 1
        self.pen.rectangle((left, top, right, bottom), outline=_FRAME)
        enlarged = self._enlarge(image.convert("RGB"))
        if shown is None:
            self.canvas.paste(enlarged, (left + 1, top + 1))
            return
        self.canvas.paste(_hatching(enlarged.size), (left + 1, top + 1))
        mask = _first_pixels(self.image_size, shown) if isinstance(shown, int) else Image.fromarray(shown).convert("L")
        self.canvas.paste(enlarged, (left + 1, top + 1), self._enlarge(mask))

    def _enlarge(self, image: Image.Image) -> Image.Image:
        size = (image.width * self.factor, image.height * self.factor)
        return image.resize(size, Image.Resampling.NEAREST)


def _factor(image_size: tuple[int, int]) -> int:
    return max(1, round(_CELL / max(image_size)))


def _cell(image_size: tuple[int, int]) -> tuple[int, int]:
    """An enlarged image with its frame."""
    factor = _factor(image_size)
    return image_size[0] * factor + 2, image_size[1] * factor + 2


def _columns(num: int, asked: int | None) -> int:
    return min(math.ceil(math.sqrt(num)) if asked is None else ranges.COLUMNS.check("columns", asked), num)


def _block(num_completions: int, cell_height: int, has_labels: bool) -> tuple[int, int]:
    """Height of a label, and of an original's row with all its completions."""
    label = _CAPTION_SIZE + 6 if has_labels else 0
    lines = -(-num_completions // _COLUMNS)
    return label, label + lines * (cell_height + _GAP) + _GAP


def _checked_size(width: int, height: int) -> tuple[int, int]:
    what = f"a picture of {width:,} x {height:,} pixels"
    check_memory(what, 3 * width * height, "ask for fewer images, or write each to a file of its own")
    return width, height


def _first_pixels(size: tuple[int, int], num: int) -> Image.Image:
    """A mask that is white on the first `num` pixels in raster order."""
    mask = Image.new("L", size, 0)
    full_rows, rest = divmod(num, size[0])
    mask.paste(255, (0, 0, size[0], full_rows))
    mask.paste(255, (0, full_rows, rest, min(full_rows + 1, size[1])))
    return mask


def _hatching(size: tuple[int, int]) -> Image.Image:
    """Diagonal stripes."""
    ground, stripe = _HATCH
    image = Image.new("RGB", size, ground)
    pen = ImageDraw.Draw(image)
    for start in range(-size[1], size[0], 8):
        pen.line((start, size[1], start + size[1], 0), fill=stripe, width=2)
    return image


def _check_counts(
    originals: Sequence[Image.Image], completions: Sequence[Sequence[Image.Image]], labels: Sequence[str] | None
) -> None:
    if len(completions) != len(originals) or (labels is not None and len(labels) != len(originals)):
        given = f"{len(completions)} lists of completions" + (
            f" and {len(labels)} labels" if labels is not None else ""
        )
        raise ValueError(f"{given} were given for {len(originals)} originals: give one an original")
    counts = sorted({len(several) for several in completions})
    if len(counts) > 1 or counts == [0]:
        raise ValueError(f"the originals have {counts} completions: give each equally many, at least 1")
    _check_sizes([*originals, *(image for several in completions for image in several)])


def _check_sizes(images: Sequence[Image.Image]) -> None:
    if not images:
        raise ValueError("there are no images to draw: give at least one")
    sizes = sorted({image.size for image in images})
    if len(sizes) > 1:
        raise ValueError(
            f"the images differ in width and height ({', '.join(map(str, sizes))}): give images of one size"
        )


def _check_kept(kept: int | Bool[np.ndarray, "h w"], size: tuple[int, int]) -> None:
    if isinstance(kept, int):
        _check_pixels("kept", kept, size)
    elif kept.shape != size[::-1]:
        raise ValueError(f"what is kept has the shape {kept.shape}, the images are {size[::-1]}: give the same")


def _check_pixels(done: str, num: int | None, size: tuple[int, int]) -> None:
    if num is not None and not 0 <= num <= size[0] * size[1]:
        raise ValueError(f"{num} pixels are said to be {done}, an image has {size[0] * size[1]}: give 0 to that")
