"""Sample many images in batches that fit into memory.

Axes: B images, P pixels of the prompt.
"""

from collections.abc import Callable

from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from imagegpt.common import ranges
from imagegpt.common.memory import check_memory
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.pipeline.options import Progress
from imagegpt.sampling import Sampler, SamplingRules

_BYTES_PER_PIXEL = 3 + 8  # of a finished image: its colour, and its id in the prompts


def check_images_fit(num: int, num_pixels: int) -> None:
    """Check that there is enough memory for all images, which are returned together.

    Raises: ValueError if not.
    """
    advice = "ask for fewer, or write them to a folder (imagegpt sample --out FOLDER)"
    check_memory(f"keeping {num:,} images", num * num_pixels * _BYTES_PER_PIXEL, advice)


def sample_in_batches(
    sampler: Sampler,
    processor: ImageGPTImageProcessor,
    prompts: Int64[Tensor, "b p"],
    *,
    seeds: list[int],
    rules: SamplingRules,
    batch_size: int | None,
    progress: Progress | None,
) -> list[Image.Image]:
    """Sample one image per prompt.

    Args:
        prompts: ids of the first pixels of each image, in raster order.
        batch_size: images per batch; None means as many as the sampler's plan allows.
        progress: called after each step with (pixels sampled, pixels in total), over all images.
    Raises: ValueError if the batch size is out of range or the sampler refuses a prompt.
    """
    requested = ranges.BATCH_SIZE.check_optional("batch_size", batch_size)
    batch_size = sampler.plan.batch_size if requested is None else requested
    pixels_per_image = sampler.model.config.n_positions - prompts.shape[1]
    total = len(seeds) * pixels_per_image
    images: list[Image.Image] = []
    for start in range(0, len(seeds), batch_size):
        rows = slice(start, start + batch_size)
        report = None if progress is None else _add_offset(progress, start * pixels_per_image, total)
        ids = sampler.generate(prompts[rows], seeds=seeds[rows], rules=rules, on_progress=report)
        images += processor.decode(ids)
    return images


def _add_offset(progress: Progress, num_before: int, total: int) -> Callable[[int], None]:
    """Convert progress within a batch to progress over all images."""
    return lambda num_pixels: progress(num_before + num_pixels, total)
