"""The sampler: prompts in, whole images out. A thin user of `plan` and `session`.

Axes: B images, P pixels of the prompts, T pixels of the images, W pixels of a row.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from imagegpt.common import ranges
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.sampling.plan import BackendOption, ExecutionPlan
from imagegpt.sampling.prompts import Prompts, check_room, checked_length, checked_prompts
from imagegpt.sampling.rules import SamplingRules, seed_tensor
from imagegpt.sampling.session import Session, Statistics
from imagegpt.sampling.weight_formats import PrecisionOption

DecoderName = Literal["sequential", "parallel"]
OnProgress = Callable[[int], None]


class FinishedRow(NamedTuple):
    """A row of some images, as `Sampler.stream` gives it.

    Args:
        images: which, as indices of seeds.
        row: which row, from the top.
        ids: (images, W) colours.
    """

    images: range
    row: int
    ids: Int64[Tensor, "b w"]


class Generation(NamedTuple):
    """What `Sampler.run` gives.

    Args:
        ids: (images, T) colours, prompts included.
        statistics: of how they were drawn.
    """

    ids: Int64[Tensor, "b t"]
    statistics: Statistics


class Sampler:
    """Draws images from a model. It may be used by several threads at once, and keeps nothing between calls.

    An image depends on its prompt, its seed, the rules and the weights; not on the other images of the batch, nor on
    how it is decoded. With our kernels on a CPU that holds to the last bit. In torch's operations the logits of other
    batch sizes may differ in their last bits (matrix products sum in another order), which changes a pixel only if its
    two best candidates are that close: about one in a million in float32.

    Args:
        model: a causal model of ours. It is copied as it is now, without dropout; see `in_place`.
        precision: of the projections' weights, and of keys and values: "float32", "bfloat16" or "int8" (keys and values
            in bfloat16 where our kernels cannot be used); all sums and everything else are in float32. "auto" is
            bfloat16 where the device multiplies it, else float32, see `common.precision`; None is the model's own
            dtype.
        decoder: "sequential" draws pixel after pixel, "parallel" drafts several and keeps those that are right. The
            images are the same; see `imagegpt.sampling.parallel`.
        backend: what computes, see `ExecutionPlan`; "auto" is the fastest that can.
        max_memory: bytes that weights, keys and values may take; images that do not fit at once are drawn in turns.
        in_place: change the model itself instead of copying it, so that its weights are in memory once. It still
            computes logits (in the precision chosen), but can no longer be trained.
    Raises: TypeError for a model without the generative head; ValueError for one that is bidirectional or has
        cross-attention, and so cannot draw pixels in order, and for options that do not exist.
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
        self._draws_in_turns = max_memory is not None

    @property
    def model(self) -> ImageGPTForCausalImageModeling:
        """The model as it is run."""
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
        """Draw images, or the rest of them.

        Args:
            prompts: the first pixels of each image, colour ids without the start token; a tensor, or one tensor an
                image if they differ in length. None starts from nothing.
            seeds: one seed an image, 0 to 2^64 - 1, see `image_seed`.
            rules: how pixels are drawn; None is the model's own distribution.
            num_pixels: T, of the images, prompt included; None means all that the model has positions for.
            on_progress: called now and then with the number of pixels drawn so far, of all images.
        Returns: whole images, prompts included, on the model's device. A prompt of T pixels comes back as it is.
        Raises: ValueError for prompts, seeds or lengths that do not fit the model or each other, or logits that are not
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
    ) -> Generation:
        """As `generate`, and tells how the images were drawn."""
        num_pixels = checked_length(num_pixels, self.model.config)
        checked = checked_prompts(prompts, len(seeds), num_pixels, self.model.config)
        # Made outside inference mode, so that the caller may do with it what he likes, training included.
        ids = torch.empty(len(seeds), num_pixels, dtype=torch.int64, device=self.plan.device)
        drawn_before, statistics = 0, Statistics()
        for images, session in self._drawn(checked, seeds, rules or SamplingRules(), num_pixels):
            if on_progress is not None and session.statistics.num_pixels:
                on_progress(drawn_before + session.statistics.num_pixels)
            if not session.unfinished():
                ids[images.start : images.stop] = session.tokens[:, 1:]
                drawn_before += session.statistics.num_pixels
                statistics += session.statistics
        return Generation(ids, statistics)

    def stream(
        self,
        prompts: Prompts | None = None,
        *,
        seeds: Sequence[int],
        rules: SamplingRules | None = None,
        num_pixels: int | None = None,
        row_length: int | None = None,
    ) -> Iterator[FinishedRow]:
        """Draw images and give their rows as they are finished, from the top.

        Args:
            prompts: as for `generate`, as are seeds, rules and num_pixels.
            seeds: likewise.
            rules: likewise.
            num_pixels: likewise.
            row_length: W; None is the side of the square that the model's images are.
        Yields: each row, given ones included, once all images that are drawn together have it.
        Raises: ValueError as `generate`, and if the images are no whole number of rows.
        """
        num_pixels = checked_length(num_pixels, self.model.config)
        side = math.isqrt(self.model.config.n_positions)
        row_length = side if row_length is None else ranges.PIXELS.check("row_length", row_length)
        if num_pixels % row_length:
            raise ValueError(f"{num_pixels} pixels are no whole number of rows of {row_length}: give row_length")
        checked = checked_prompts(prompts, len(seeds), num_pixels, self.model.config)
        return self._rows(checked, seeds, rules or SamplingRules(), num_pixels, row_length)

    def _rows(
        self, prompts: list[Tensor], seeds: Sequence[int], rules: SamplingRules, num_pixels: int, row_length: int
    ) -> Iterator[FinishedRow]:
        given, of = 0, range(0)  # rows of these images
        for images, session in self._drawn(prompts, seeds, rules, num_pixels):
            given, of = given if images == of else 0, images
            done = min(session.positions) // row_length
            for row in range(given, done):
                ids = session.tokens[:, 1 + row * row_length : 1 + (row + 1) * row_length].clone()
                yield FinishedRow(images, row, ids)
            given = done

    def _drawn(
        self, prompts: list[Tensor], seeds: Sequence[int], rules: SamplingRules, num_pixels: int
    ) -> Iterator[tuple[range, Session]]:
        """Draw images in batches that fit; gives each batch and its session after every step."""
        seed_tensor(seeds)  # refuses what is no seed before anything is drawn
        waiting = _split(range(len(seeds)), self.plan.batch_size if self._draws_in_turns else len(seeds))
        check_room(len(waiting[0]) if waiting else 0, self.plan.bytes_per_image, torch.device(self.plan.device))
        while waiting:
            images = waiting.pop(0)
            try:
                session = self._admitted(images, prompts, seeds, rules, num_pixels)
            except RuntimeError as error:  # what torch.OutOfMemoryError is, too
                if not _is_out_of_memory(error) or len(images) == 1:
                    raise
                half = len(images) // 2
                waiting[:0] = [images[:half], images[half:]]
                continue
            yield images, session
            while session.unfinished():
                session.step()
                if not session.unfinished():
                    for row in range(len(images)):
                        session.release(row)
                yield images, session

    def _admitted(
        self, images: range, prompts: list[Tensor], seeds: Sequence[int], rules: SamplingRules, num_pixels: int
    ) -> Session:
        session = self.plan.open(len(images), num_pixels)
        for image in images:
            session.admit(prompts[image], seeds[image], rules)
        return session


def _split(images: range, most: int) -> list[range]:
    size = max(1, most)
    return [images[start : start + size] for start in range(0, len(images), size)]


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
