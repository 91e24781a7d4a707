"""Loading a palette, fitting one to the images of a source, and measuring how well it reproduces them.

Axis letters: H height, W width.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from imagegpt.checkpoints.loading import find_folder
from imagegpt.common import ranges
from imagegpt.data.broken_images import MAX_BROKEN, BrokenImage, check_broken
from imagegpt.data.sources.base import ImageSource
from imagegpt.images.palette import ColorPalette, PaletteReport
from imagegpt.images.processor import ImageGPTImageProcessor

_MAX_EXAMPLES = 10_000  # images that the report is of
_MAX_EXAMPLE_PIXELS = _MAX_EXAMPLES * 32 * 32  # of all of them together: 30 MB
_BATCH_SIZE = 256  # images given to the sample of pixels together: one by one takes 10 ms an image
_MAX_BATCH_PIXELS = _BATCH_SIZE * 64 * 64


@dataclass(frozen=True, kw_only=True)
class FittedPalette:
    """A palette and how well it fits.

    Attributes:
        palette: the colours.
        report: on the reproduction of `examples`.
        examples: up to 10,000 of the images, fewer if they are larger than 32 x 32, evenly spaced: uint8 (H, W, 3), as
            the palette saw them.
        num_images: how many the palette was fitted to.
        broken: images that could not be read.
    """

    palette: ColorPalette
    report: PaletteReport
    examples: list[UInt8[np.ndarray, "h w 3"]]
    num_images: int
    broken: list[BrokenImage] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the result for JSON, without the images."""
        return {
            "palette": self.palette.fingerprint,
            "num_colors": self.palette.num_colors,
            "is_grey": self.palette.is_grey,
            "num_images": self.num_images,
            "num_broken": len(self.broken),
            "num_examples": len(self.examples),
            "psnr_db": self.report.psnr_db,
            "num_unused_colors": self.report.num_unused,
            "perplexity": self.report.perplexity,
        }


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
    """Fit a palette to images, which are read one after the other.

    Args:
        source: the images.
        num_colors: 2 to 65,536.
        processor: resizes the images; it needs no palette.
        seed: of k-means, of the sample of pixels, and of the sample of images.
        grey: fit levels of grey.
        max_images: use a random sample of this size, if there are more.
        max_broken: the largest fraction of these images, 0 to 1, that may be broken; broken images are skipped.
        on_progress: called with the images read, and the images to read.
    Raises: ValueError if there are fewer distinct colours than asked for, too many images are broken, or a number is
        out of its range.
    """
    num_colors, seed = ranges.COLORS.check("num_colors", num_colors), ranges.FITTING_SEED.check("seed", seed)
    max_images = ranges.DATASET_SIZE.check_optional("max_images", max_images)
    max_broken = ranges.BROKEN_FRACTION.check("max_broken", max_broken)
    indices = np.arange(len(source))
    if max_images is not None and max_images < len(source):
        indices = np.sort(np.random.default_rng(seed).choice(len(source), max_images, replace=False))
    reader = _Reader(source, indices, processor, max_broken, on_progress or (lambda *_: None))
    palette = ColorPalette.fit(reader.batches(), num_colors, seed=seed, grey=grey)
    return FittedPalette(
        palette=palette,
        report=palette.report(reader.examples),
        examples=reader.examples,
        num_images=len(indices) - len(reader.broken),
        broken=reader.broken,
    )


def load_palette(name: str) -> ColorPalette:
    """Load the palette in a file, in a folder, or of a model by its name.

    Raises: ValueError or OSError, in one sentence, if there is none.
    """
    return ColorPalette.load(Path(name) if Path(name).is_file() else find_folder(name, weights=False))


def checked_palette(processor: ImageGPTImageProcessor) -> ColorPalette:
    """Return the palette of a processor that makes images of one size.

    Raises: ValueError if it has none, or does not resize images.
    """
    if processor.palette is None:
        raise ValueError("this processor has no palette: give it one, so that pixels can be encoded")
    if not processor.do_resize:
        raise ValueError("do_resize is False and encoded images are all of one size: set it to True")
    return processor.palette


class _Reader:
    """Reads images once, and remembers the broken ones and some examples."""

    def __init__(
        self,
        source: ImageSource,
        indices: Int64[np.ndarray, " n"],
        processor: ImageGPTImageProcessor,
        max_broken: float,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self._source, self._indices, self._processor = source, indices, processor
        self._max_broken, self._on_progress = max_broken, on_progress
        num_pixels = processor.size["height"] * processor.size["width"]
        self._example_step = -(-len(indices) // max(1, min(_MAX_EXAMPLES, _MAX_EXAMPLE_PIXELS // num_pixels)))
        self._batch_size = max(1, min(_BATCH_SIZE, _MAX_BATCH_PIXELS // num_pixels))
        self.examples: list[UInt8[np.ndarray, "h w 3"]] = []
        self.broken: list[BrokenImage] = []

    def batches(self) -> Iterator[UInt8[np.ndarray, "b h w 3"]]:
        """Yield all images that can be read, resized, some at a time."""
        images = self._images()
        while batch := list(itertools.islice(images, self._batch_size)):
            yield np.stack(batch)

    def _images(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        total = len(self._indices)
        self._on_progress(0, total)
        found = self._source.read_each(self._indices.tolist(), lambda one: self._processor.to_rgb([one.image])[0])
        for position, rgb in enumerate(found):
            if isinstance(rgb, BrokenImage):
                self.broken.append(rgb)
                check_broken(self.broken, total, f"images of {self._source.name}", self._max_broken)
            else:
                if position % self._example_step == 0 or not self.examples:
                    self.examples.append(rgb)
                yield rgb
            self._on_progress(position + 1, total)
