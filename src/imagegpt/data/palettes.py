"""Choosing a palette for the pictures of a source, and seeing what it makes of them.

Axis letters: H height, W width.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from imagegpt.common import ranges
from imagegpt.data.broken_images import MAX_BROKEN, READ_ERRORS, BrokenImage, check_broken
from imagegpt.data.sources.base import ImageSource, no_warnings
from imagegpt.images.palette import ColorPalette, PaletteReport
from imagegpt.images.processor import ImageGPTImageProcessor

_REPORTED = 10_000  # images that are kept for the report, at most
_REPORTED_PIXELS = _REPORTED * 32 * 32  # that these have, at most: 30 MB
_AT_ONCE = 256  # images given to the sample of pixels together: one by one that takes 10 ms an image
_PIXELS_AT_ONCE = _AT_ONCE * 64 * 64  # that these have, at most


@dataclass(frozen=True, kw_only=True)
class FittedPalette:
    """A palette, and how it was come by.

    Attributes:
        palette: the colours.
        report: how well they serve up to 10,000 of the images (fewer if they are larger than 32 x 32), spread evenly
            over all that were used.
        examples: those images, uint8 (H, W, 3), as the palette saw them.
        num_images: how many were used.
        broken: those that could not be read.
    """

    palette: ColorPalette
    report: PaletteReport
    examples: list[UInt8[np.ndarray, "h w 3"]]
    num_images: int
    broken: list[BrokenImage] = field(default_factory=list)


def fit_palette(
    source: ImageSource,
    num_colors: int,
    processor: ImageGPTImageProcessor,
    *,
    seed: int = 0,
    grey: bool = False,
    max_images: int | None = None,
    max_broken: float = MAX_BROKEN,
    on_progress: Callable[[int, int], None] | None = None,
) -> FittedPalette:
    """Choose colours for pictures, which are read one after the other.

    Args:
        source: of the pictures.
        num_colors: 2 to 65,536.
        processor: brings the pictures to their size; it needs no palette.
        seed: of k-means, its sample of pixels, and that of pictures.
        grey: choose levels of grey.
        max_images: use a random sample of so many, if there are more.
        max_broken: the share of these, 0 to 1, that may be broken; they are left out.
        on_progress: called with the pictures that were read, and how many there are to read.
    Raises: ValueError if there are fewer distinct colours than asked for, too many pictures are broken, or a number is
        out of its range.
    """
    num_colors, seed = ranges.COLORS.check("num_colors", num_colors), ranges.FITTING_SEED.check("seed", seed)
    max_images = ranges.SOME_IMAGES.check_if_given("max_images", max_images)
    max_broken = ranges.BROKEN_SHARE.check("max_broken", max_broken)
    chosen = np.arange(len(source))
    if max_images is not None and max_images < len(source):
        chosen = np.sort(np.random.default_rng(seed).choice(len(source), max_images, replace=False))
    num_pixels = processor.size["height"] * processor.size["width"]
    kept_every = -(-len(chosen) // max(1, min(_REPORTED, _REPORTED_PIXELS // num_pixels)))
    at_once = max(1, min(_AT_ONCE, _PIXELS_AT_ONCE // num_pixels))
    examples: list[np.ndarray] = []
    broken: list[BrokenImage] = []

    def read() -> Iterator[np.ndarray]:
        if on_progress is not None:
            on_progress(0, len(chosen))
        for count, index in enumerate(chosen):
            name = f"image {index}"
            try:
                with no_warnings():
                    example = source[int(index)]
                    name = example.name
                    rgb = processor.to_rgb([example.image])[0]
            except READ_ERRORS as error:
                broken.append(BrokenImage.of(int(index), name, error))
                check_broken(broken, len(chosen), f"images of {source.name}", max_broken)
            else:
                if count % kept_every == 0 or not examples:
                    examples.append(rgb)
                yield rgb
            if on_progress is not None:
                on_progress(count + 1, len(chosen))

    def read_together() -> Iterator[np.ndarray]:
        images = read()
        while several := list(itertools.islice(images, at_once)):
            yield np.stack(several)

    palette = ColorPalette.fit(read_together(), num_colors, seed=seed, grey=grey)
    return FittedPalette(
        palette=palette,
        report=palette.report(examples),
        examples=examples,
        num_images=len(chosen) - len(broken),
        broken=broken,
    )


def checked_palette(processor: ImageGPTImageProcessor) -> ColorPalette:
    """The palette of a processor that makes images of one size.

    Raises: ValueError if it has none, or leaves images in the size they have.
    """
    if processor.palette is None:
        raise ValueError("this processor has no palette: give it one, so that pixels can be encoded")
    if not processor.do_resize:
        raise ValueError("do_resize is False and encoded images are all of one size: set it to True")
    return processor.palette
