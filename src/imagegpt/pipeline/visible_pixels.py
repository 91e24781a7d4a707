"""Which pixels of an image the model is given: a prompt from the top, or whatever a mask keeps.

Axes: H rows, W columns.
"""

import numpy as np
from jaxtyping import Bool

from imagegpt.images.masks import num_visible_from_fraction, num_visible_from_mask, num_visible_from_rows, read_mask
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.images.reading import ImageLike


def visible_pixels(processor: ImageGPTImageProcessor, mask: ImageLike) -> Bool[np.ndarray, "h w"]:
    """Resize a mask to the model's images; True where a pixel is visible.

    Raises: ValueError if the mask cannot be read, or hides no pixel.
    """
    visible = read_mask(mask, processor.size["height"], processor.size["width"], processor.resize_mode)
    if visible.all():
        raise ValueError(f"the mask keeps all of {visible.size} pixels: leave at least one to fill")
    return visible


def prompt_length(
    processor: ImageGPTImageProcessor, *, keep: float | None, rows: int | None, mask: ImageLike | None
) -> int:
    """See `ImageGPTPipeline.prompt_length`."""
    height, width = processor.size["height"], processor.size["width"]
    given = [name for name, value in (("keep", keep), ("rows", rows), ("mask", mask)) if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} were given: give only one of them")
    if rows is not None:
        return num_visible_from_rows(rows, height, width)
    if mask is not None:
        return num_visible_from_mask(read_mask(mask, height, width, processor.resize_mode))
    return num_visible_from_fraction(0.5 if keep is None else keep, height * width)
