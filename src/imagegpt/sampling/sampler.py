"""The sampler: prompts in, whole images out. A thin layer over `plan` and `session`.

Axes: B images, P pixels of the prompts, T pixels of the images, W pixels per row of an image.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from imagegpt.common import ranges
from imagegpt.common.memory import check_memory
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.sampling.noise import seed_tensor
from imagegpt.sampling.plan import BackendOption, ExecutionPlan
from imagegpt.sampling.prompts import Prompts, resolve_num_pixels, validate_prompts
from imagegpt.sampling.rules import SamplingRules
from imagegpt.sampling.session import Session, Statistics
from imagegpt.sampling.weight_formats import PrecisionOption

DecoderName = Literal["sequential", "parallel"]
OnProgress = Callable[[int], None]


class FinishedRow(NamedTuple):
    """One row of a batch of images, from `Sampler.stream`.

    Args:
        images: the images of the batch, as indices of seeds.
        row: index of the row, from the top.
        ids: (images, W) colours.
    """

    images: range
    row: int
    ids: Int64[Tensor, "b w"]


class SamplerOutput(NamedTuple):
    """The result of `Sampler.run`.

    Args:
        ids: (images, T) colours, prompts included.
        statistics: see `Statistics`.
    """

    ids: Int64[Tensor, "b t"]
    statistics: Statistics


class Sampler:
    """Samples images from a model. Thread-safe, and without state between calls.

    An image depends on its prompt, its seed, the rules and the weights; not on the other images of the batch, nor on
    the decoder. With our CPU kernels this holds bit for bit. In torch, the logits of other batch sizes may differ in
    their last bits (matrix products sum in another order), which changes a pixel only if its two best candidates are
    that close: about one pixel in a million in float32.

    Args:
        model: a causal model of ours. The sampler copies it, without dropout, unless `in_place`.
        precision: of the projections' weights, and of keys and values: "float32", "bfloat16" or "int8" (keys and values
            in bfloat16 where our kernels are not used). All sums and everything else are in float32. "auto" is bfloat16
            where the device is fast at it, else float32, see `common.precision`; None is the model's own dtype.
        decoder: "sequential" samples one pixel after the other; "parallel" drafts several and accepts those that are
            right. The images are the same; see `imagegpt.sampling.parallel`.
        backend: computes the steps, see `ExecutionPlan`; "auto" is the fastest that supports the model.
        max_memory: bytes for weights, keys and values; images that do not fit at once are sampled in several batches.
        in_place: change the model itself instead of copying it, so that its weights are in memory once. It still
            computes logits (in the chosen precision), but can no longer be trained.
    Raises: TypeError for a model without the generative head; ValueError for one that is bidirectional or has
        cross-attention, and so cannot sample pixels in order, and for unknown options.
    """

    def __init__(
        self,
        model: ImageGPTForCausalImageModeling,
        *,
        precision: PrecisionOption | None = None,
        decoder: DecoderName = "sequential",
        backend: BackendOption = "auto",
        max_memory: int | None = None,
        in_place: bool = False,
    ) -> None:
        self.plan = ExecutionPlan.choose(
            model, precision=precision, decoder=decoder, backend=backend, max_memory=max_memory, in_place=in_place
        )
        self._has_memory_limit = max_memory is not None

    @property
    def model(self) -> ImageGPTForCausalImageModeling:
        """The prepared model."""
        return self.plan.model

    def generate(
        self,
        prompts: Prompts | None = None,
        *,
        seeds: Sequence[int],
        rules: SamplingRules | None = None,
        num_pixels: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Int64[Tensor, "b t"]:
        """Sample images, or complete prompts.

        Args:
            prompts: the first pixels of each image, colour ids without the start token; a tensor, or one tensor per
                image if their lengths differ. None samples whole images.
            seeds: one per image, 0 to 2^64 - 1, see `image_seed`.
            rules: None is the model's own distribution.
            num_pixels: T, prompt included; None is all that the model has positions for.
            on_progress: called now and then with the number of pixels sampled so far, over all images.
        Returns: whole images, prompts included, on the model's device. A prompt of T pixels is returned unchanged.
        Raises: ValueError for prompts, seeds or sizes that do not fit the model or each other, or logits that are not
            finite.
        """
        return self.run(prompts, seeds=seeds, rules=rules, num_pixels=num_pixels, on_progress=on_progress).ids

    def run(
        self,
        prompts: Prompts | None = None,
        *,
        seeds: Sequence[int],
        rules: SamplingRules | None = None,
        num_pixels: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> SamplerOutput:
        """As `generate`, with decoding statistics."""
        num_pixels = resolve_num_pixels(num_pixels, self.model.config)
        checked = validate_prompts(prompts, len(seeds), num_pixels, self.model.config)
        # Allocated outside inference mode, so that the caller can train on it.
        ids = torch.empty(len(seeds), num_pixels, dtype=torch.int64, device=self.plan.device)
        pixels_before, statistics = 0, Statistics()
        for images, session in self._sample_batches(checked, seeds, rules or SamplingRules(), num_pixels):
            if on_progress is not None and session.statistics.num_pixels:
                on_progress(pixels_before + session.statistics.num_pixels)
            if not session.unfinished():
                ids[images.start : images.stop] = session.tokens[:, 1:]
                pixels_before += session.statistics.num_pixels
                statistics += session.statistics
        return SamplerOutput(ids, statistics)

    def stream(
        self,
        prompts: Prompts | None = None,
        *,
        seeds: Sequence[int],
        rules: SamplingRules | None = None,
        num_pixels: int | None = None,
        row_length: int | None = None,
    ) -> Iterator[FinishedRow]:
        """Sample images and yield their rows as they are finished, from the top.

        Args:
            row_length: W; None is the side of the model's square images. The others are those of `generate`.
        Yields: each row, prompt rows included, once all images of its batch have it.
        Raises: ValueError as `generate`, and if T is not a multiple of W.
        """
        num_pixels = resolve_num_pixels(num_pixels, self.model.config)
        side = math.isqrt(self.model.config.n_positions)
        row_length = side if row_length is None else ranges.PIXELS.check("row_length", row_length)
        if num_pixels % row_length:
            raise ValueError(f"{num_pixels} pixels are not a whole number of rows of {row_length}: give row_length")
        checked = validate_prompts(prompts, len(seeds), num_pixels, self.model.config)
        return self._stream_rows(checked, seeds, rules or SamplingRules(), num_pixels, row_length)

    def _stream_rows(
        self, prompts: list[Tensor], seeds: Sequence[int], rules: SamplingRules, num_pixels: int, row_length: int
    ) -> Iterator[FinishedRow]:
        num_yielded, batch = 0, range(0)  # rows yielded of this batch
        for images, session in self._sample_batches(prompts, seeds, rules, num_pixels):
            num_yielded, batch = num_yielded if images == batch else 0, images
            num_finished = min(session.positions) // row_length
            for row in range(num_yielded, num_finished):
                ids = session.tokens[:, 1 + row * row_length : 1 + (row + 1) * row_length].clone()
                yield FinishedRow(images, row, ids)
            num_yielded = num_finished

    def _sample_batches(
        self, prompts: list[Tensor], seeds: Sequence[int], rules: SamplingRules, num_pixels: int
    ) -> Iterator[tuple[range, Session]]:
        """Sample images in batches that fit into memory; yield each batch and its session after every step."""
        seed_tensor(seeds)  # checks all seeds before any sampling
        size = max(1, self.plan.batch_size if self._has_memory_limit else len(seeds))
        batches = [range(len(seeds))[start : start + size] for start in range(0, len(seeds), size)]
        if batches and torch.device(self.plan.device).type == "cpu":  # on a GPU, batches are halved as needed
            advice = "choose a smaller batch size, or set max_memory to sample them in several batches"
            num = len(batches[0])
            check_memory(f"sampling {num:,} images at once", num * self.plan.bytes_per_image, advice)
        while batches:
            images = batches.pop(0)
            try:
                session = self.plan.open_session(len(images), num_pixels)
                for image in images:
                    session.admit(prompts[image], seeds[image], rules)
            except RuntimeError as error:  # the base class of torch.OutOfMemoryError
                if not _is_out_of_memory(error) or len(images) == 1:
                    raise
                half = len(images) // 2
                batches[:0] = [images[:half], images[half:]]
                continue
            yield images, session
            while session.unfinished():
                session.step()
                if not session.unfinished():
                    for row in range(len(images)):
                        session.release(row)
                yield images, session


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
