"""Pictures to look at: completions beside what was kept of the original, sheets of samples, and both as they appear.

Small images are enlarged by whole factors without smoothing, so that a pixel stays a square. What the model has not
been shown, or has not drawn yet, is hatched in blue, which no grey, black or white pixel can be mistaken for.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

from imagegpt import ranges

_PAPER, _INK, _FAINT, _FRAME = (255, 255, 255), (32, 33, 36), (110, 114, 122), (205, 208, 214)
_HATCH = (224, 232, 245), (150, 176, 219)  # between the stripes, the stripes
_CELL = 96  # pixels an image is enlarged to, as nearly as a whole factor can
_GAP, _GROUP_GAP, _MARGIN = 6, 18, 16
_CAPTION_SIZE = 15
_COLUMNS = 8  # completions in a row
_PALETTE_COLUMNS, _SWATCH = 32, 16  # colours in a row, and the pixels a side of each
_STEPS = 64  # of an animation, at most
_FRAME_MS, _LAST_FRAME_MS = 80, 2000


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
    sheet = _Sheet(originals[0].size)
    columns = min(_COLUMNS, len(completions[0]))
    lines = -(-len(completions[0]) // columns)
    label_height = _CAPTION_SIZE + 6 if labels is not None else 0
    block_height = label_height + lines * (sheet.cell[1] + _GAP) + _GAP
    lefts = [_MARGIN, _MARGIN + sheet.cell[0] + _GROUP_GAP]
    lefts += [lefts[1] + _GROUP_GAP + (sheet.cell[0] + _GAP) * i + sheet.cell[0] for i in range(columns)]
    header = _CAPTION_SIZE + 10
    sheet.open(
        lefts[-1] + sheet.cell[0] + _MARGIN, _MARGIN + header + block_height * len(originals) + _MARGIN - 2 * _GAP
    )

    num_kept = kept if isinstance(kept, int) else int(kept.sum())
    kept_percent = f"{100 * num_kept / (width * height):.3g} %"
    for left, caption in zip(lefts, ("original", f"kept {kept_percent}", "completions"), strict=False):
        sheet.write(left, _MARGIN, caption, _INK)
    for row, original in enumerate(originals):
        top = _MARGIN + header + row * block_height
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
    if columns is None:
        columns = math.ceil(math.sqrt(len(images)))
    columns = min(ranges.COLUMNS.check("columns", columns), len(images))
    sheet = _Sheet(images[0].size)
    step_x, step_y = sheet.cell[0] + _GAP, sheet.cell[1] + _GAP
    sheet.open(2 * _MARGIN + columns * step_x - _GAP, 2 * _MARGIN + -(-len(images) // columns) * step_y - _GAP)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(image, _MARGIN + column * step_x, _MARGIN + row * step_y, num_shown)
    return sheet.canvas


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


class _Sheet:
    """A canvas with framed, enlarged images of one size on it."""

    def __init__(self, image_size: tuple[int, int]) -> None:
        self.image_size = image_size
        self.factor = max(1, round(_CELL / max(image_size)))
        self.cell = (image_size[0] * self.factor + 2, image_size[1] * self.factor + 2)  # with its frame
        self.font = ImageFont.load_default(_CAPTION_SIZE)

    def open(self, width: int, height: int) -> None:
        """Start with blank paper."""
        self.canvas = Image.new("RGB", (width, height), _PAPER)
        self.pen = ImageDraw.Draw(self.canvas)

    def write(self, left: int, top: int, text: str, ink: tuple[int, int, int]) -> None:
        """Write a line, cut short with an ellipsis where the paper ends."""
        room = self.canvas.width - left - _MARGIN
        shown = text
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
