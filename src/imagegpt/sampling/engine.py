"""The sampler: prompts in, whole images out.

Prompts are read in one pass (each distinct prompt once, however many images continue it), then pixels are drawn, each
from the logits that the pixel before it gave: see `batch` for one by one, `parallel` for several at a time.

Axes: B images, P pixels of the prompts, T pixels of the images, W pixels of a row.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers.cache_utils import DynamicCache

from imagegpt import ranges
from imagegpt.kernels import decoding as kernels
from imagegpt.model import cost
from imagegpt.model.layers import ImageGPTBlock
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.sampling.batch import Batch, draw_sequentially
from imagegpt.sampling.cache import BUCKET, StaticCache
from imagegpt.sampling.compilation import Compiler
from imagegpt.sampling.decoder import Decoder, lay_out_for
from imagegpt.sampling.guessing import influence_bytes, influence_of
from imagegpt.sampling.parallel import ParallelStatistics, draw_in_parallel
from imagegpt.sampling.projections import PrecisionOption, freeze, resolve_precision
from imagegpt.sampling.prompts import Prompts, check_room, checked_length, checked_prompts, num_shared_prompts
from imagegpt.sampling.recording import Recorder
from imagegpt.sampling.rules import SamplingRules
from imagegpt.sampling.run_length import RunLength

DecoderName = Literal["sequential", "parallel"]
OnProgress = Callable[[int], None]

_PREFILLED_AT_ONCE = 4  # prompts; more are not faster on a CPU and take memory

# When compiling pays: it takes about 10 s, and then a step takes about half as long. A step that is not compiled takes
# what reading the weights takes, or multiplying with them, and 150 microseconds a block.
_WORTH_COMPILING_S = 20.0
_BYTES_PER_S = 15e9
_FLOPS_PER_S = 20e9
_OVERHEAD_PER_BLOCK_S = 150e-6
_SMALL_BYTES = 1 << 24  # weights that a GPU is not worth compiling for: a recorded step is short anyway


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


class _Room(NamedTuple):
    """Where a batch of images is drawn."""

    decoder: Decoder
    batch: Batch
    recorder: Recorder


class Sampler:
    """Draws images from a model.

    An image depends on its prompt, its seed, the rules and the weights; not on the other images of the batch, nor on
    how it is decoded. That is exact for the noise. The logits of other batch sizes may differ in their last bits
    (matrix products sum in another order), which changes a pixel only if its two best candidates are that close: about
    one in a million in float32.

    Args:
        model: a causal model of ours. It is copied as it is now, without dropout; see `in_place`.
        precision: of the projections' weights, and of keys and values: "float32", "bfloat16" or "int8" (keys and values
            in bfloat16 where our kernels cannot be used); all sums and everything else are in float32. "auto" is
            bfloat16 where the device multiplies it, else float32, see `imagegpt.precision`; None is the model's own
            dtype.
        decoder: "sequential" draws pixel after pixel, "parallel" guesses several and keeps those that are right. The
            images are the same; see `imagegpt.sampling.parallel`.
        compile: True runs compiled graphs that are known, and compiles where the images asked for take longer than
            compiling; "always" compiles whatever it takes; False never does.
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
        compile: bool | Literal["always"] = True,  # noqa: A002 - torch's word
        max_memory: int | None = None,
        in_place: bool = False,
    ) -> None:
        _check_model(model)
        chosen = resolve_precision(precision, model.device)
        if decoder not in get_args(DecoderName):
            raise ValueError(f"decoder is {decoder!r}: choose one of {', '.join(get_args(DecoderName))}")
        if compile not in (True, False, "always"):
            raise ValueError(f"compile is {compile!r}: give True, False or 'always'")
        self.precision = chosen or str(model.dtype).removeprefix("torch.")
        self.model = freeze(model, chosen, in_place=in_place)
        self.decoder: DecoderName = decoder
        self.max_memory = ranges.MEMORY_BYTES.check_if_given("max_memory", max_memory)
        self.statistics = ParallelStatistics()  # of the last call, if the decoder is parallel
        self.compile = compile
        self._compiler, self._known_graphs = Compiler(), Compiler(only_known=True)
        self._cache_dtype = self._dtype_of_cache(None)  # what will be used is known when something is drawn
        self._run_lengths: dict[tuple[int, int], RunLength] = {}  # by images and pixels
        self._influence: Tensor | None = None  # made when it is needed
        self._room: tuple[tuple[int, int, SamplingRules], _Room] | None = None
        if max_memory is not None:
            self._most_images()

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
        num_pixels = checked_length(num_pixels, self.model.config)
        checked = checked_prompts(prompts, len(seeds), num_pixels, self.model.config)
        # Made outside inference mode, so that the caller may do with it what he likes, training included.
        images = torch.empty(len(seeds), num_pixels, dtype=torch.int64, device=self.model.device)
        drawn_before = 0
        for rows, batch, done in self._drawn(checked, seeds, rules or SamplingRules(), num_pixels):
            if on_progress is not None:
                on_progress(drawn_before + sum(max(0, done - start) for start in batch.starts))
            if done == num_pixels:
                images[rows.start : rows.stop] = batch.tokens[1:].t()
                drawn_before += sum(num_pixels - start for start in batch.starts)
        return images

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

    @property
    def bytes_per_image(self) -> int:
        """Memory that an image takes while it is drawn: keys and values in whole buckets, noise, and its ids."""
        config = self.model.config
        room = -(-config.n_positions // BUCKET) * BUCKET * self.cache_bytes_per_pixel
        noise = config.num_colors * torch.float32.itemsize
        return room + config.n_positions * (noise + torch.int64.itemsize)

    @property
    def cache_bytes_per_pixel(self) -> int:
        """Of an image: keys and values, as they were stored when something was drawn last."""
        scale_bytes = kernels.SCALE_BYTES if self._cache_dtype == torch.int8 else 0
        return cost.cache_bytes_per_pixel(self.model.config, self._cache_dtype.itemsize, scale_bytes)

    def uncompiled_s(self, num_images: int, num_pixels: int) -> float:
        """A rough guess of the seconds that a batch takes on a CPU without compiling."""
        flops = num_images * cost.step_flops(self.model.config, num_pixels // 2)
        step_s = max(self._weight_bytes() / _BYTES_PER_S, flops / _FLOPS_PER_S)
        return num_pixels * (step_s + self.model.config.n_layer * _OVERHEAD_PER_BLOCK_S)

    def _rows(
        self, prompts: list[Tensor], seeds: Sequence[int], rules: SamplingRules, num_pixels: int, row_length: int
    ) -> Iterator[FinishedRow]:
        given: dict[int, int] = {}  # rows given, by the first image of the batch
        for images, batch, done in self._drawn(prompts, seeds, rules, num_pixels):
            for row in range(given.get(images.start, 0), done // row_length):
                ids = batch.tokens[1 + row * row_length : 1 + (row + 1) * row_length].t().clone()
                yield FinishedRow(images, row, ids)
            given[images.start] = max(done // row_length, given.get(images.start, 0))

    def _drawn(
        self, prompts: list[Tensor], seeds: Sequence[int], rules: SamplingRules, num_pixels: int
    ) -> Iterator[tuple[range, Batch, int]]:
        """Draw images in batches that fit; tells again and again which, and how many pixels of them are there."""
        self.statistics = ParallelStatistics()
        waiting = _split(range(len(seeds)), self._most_images())
        check_room(len(waiting[0]) if waiting else 0, self.bytes_per_image, self.model.device)
        while waiting:
            images = waiting.pop(0)
            mine = slice(images.start, images.stop)
            try:
                # A generator must not stay in inference mode while its caller goes on, so each step enters it anew.
                steps = self._steps(prompts[mine], seeds[mine], rules, num_pixels)
                while True:
                    with torch.inference_mode():
                        batch, done = next(steps, (None, 0))
                    if batch is None:
                        break
                    yield images, batch, done
            except RuntimeError as error:  # what torch.OutOfMemoryError is, too
                if not _is_out_of_memory(error) or len(images) == 1:
                    raise
                half = len(images) // 2
                waiting[:0] = [images[:half], images[half:]]

    def _steps(
        self, prompts: list[Tensor], seeds: Sequence[int], rules: SamplingRules, num_pixels: int
    ) -> Iterator[tuple[Batch, int]]:
        """Draw one batch."""
        decoder, batch, recorder = self._room_for(prompts, num_pixels, rules)
        batch.start(prompts, seeds)
        self._prefill(decoder.cache, batch)
        for done in self._decoding(decoder, batch, recorder):
            if done < num_pixels:
                yield batch, done
        yield batch, num_pixels

    def _room_for(self, prompts: list[Tensor], num_pixels: int, rules: SamplingRules) -> _Room:
        """Where images are drawn; on a GPU the same as last time if it fits, so that what was recorded stays good."""
        num_images, device = len(prompts), self.model.device
        wanted = (num_images, num_pixels, rules)
        if self._room is not None and self._room[0] == wanted:
            return self._room[1]
        self._room = None  # first make place
        compiler = self._compiler_for(num_images, num_pixels)
        lay_out_for(self.model, compiler)  # before there is a cache, which can then take the place of what is freed
        self._cache_dtype = self._dtype_of_cache(compiler)
        # What is recorded on a GPU is used for other prompts, too, so there every image has a copy of its prompt.
        num_shared = len(prompts[0]) if device.type == "cpu" and num_shared_prompts(prompts) else 0
        cache = StaticCache(self.model, num_images, self._cache_dtype, num_shared, num_pixels)
        room = _Room(
            Decoder(self.model, cache, compiler),
            Batch(num_images, num_pixels, self.model.config.num_colors, rules, device),
            Recorder(enabled=device.type == "cuda" and self.compile is not False),
        )
        if device.type == "cuda":
            self._room = wanted, room
        return room

    def _decoding(self, decoder: Decoder, batch: Batch, recorder: Recorder) -> Iterator[int]:
        if self.decoder == "sequential":
            return draw_sequentially(decoder, batch, recorder)
        side = math.isqrt(self.model.config.n_positions)
        row_length = side if side**2 == self.model.config.n_positions else 1
        run_length = self._run_lengths.setdefault((len(batch.starts), batch.num_pixels), RunLength(batch.num_pixels))
        if self._influence is None and batch.num_pixels > 1:
            self._influence = influence_of(self.model)
        return draw_in_parallel(decoder, batch, recorder, run_length, self.statistics, row_length, self._influence)

    def _prefill(self, cache: StaticCache, batch: Batch) -> None:
        """Feed all of the prompts but their last pixels: start token and pixels, each distinct beginning once."""
        if cache.num_shared:
            prompts = list(batch.tokens[1 : cache.num_shared + 1].t())
            first_of_each = slice(None, None, len(prompts) // num_shared_prompts(prompts))
            cache.share([past for _, past in self._read(batch.tokens[: cache.num_shared, first_of_each].t())])
            return
        for start in sorted(set(batch.starts) - {0}):
            images = torch.tensor([index for index, given in enumerate(batch.starts) if given == start])
            images = images.to(batch.tokens.device)
            distinct, rows = torch.unique(batch.tokens[:start, images].t(), dim=0, return_inverse=True)
            for first, past in self._read(distinct):
                here = (rows >= first) & (rows < first + _PREFILLED_AT_ONCE)
                cache.fill(past, images[here], rows[here] - first)

    def _read(self, prompts: Int64[Tensor, "g p"]) -> Iterator[tuple[int, DynamicCache]]:
        """Keys and values of prompts, some at a time, and the index of the first of them."""
        for first in range(0, len(prompts), _PREFILLED_AT_ONCE):
            past = DynamicCache(config=self.model.config)
            part = prompts[first : first + _PREFILLED_AT_ONCE]
            self.model.transformer(part.contiguous(), past_key_values=past, use_cache=True)
            yield first, past

    def _compiler_for(self, num_images: int, num_pixels: int) -> Compiler | None:
        """What compiles, if anything is to be compiled for such a batch."""
        if self.compile is False or self.model.dtype != torch.float32:
            return None
        if self.compile == "always":
            return self._compiler
        if self.model.device.type != "cpu":  # where a GPU is, images are drawn for hours
            return self._compiler if self._weight_bytes() > _SMALL_BYTES else self._known_graphs
        long = self.uncompiled_s(num_images, num_pixels) > _WORTH_COMPILING_S
        return self._compiler if long else self._known_graphs

    def _dtype_of_cache(self, compiler: Compiler | None) -> torch.dtype:
        """In which keys and values are kept: int8 only where our kernels read it."""
        if self.precision != "int8":
            return getattr(torch, self.precision)
        widths = {block.attn.head_dim for block in self.model.transformer.h if isinstance(block, ImageGPTBlock)}
        device = self.model.device
        known = all(kernels.can_attend(width, torch.int8, device) for width in widths)
        return torch.int8 if known and compiler is not None and compiler.has_kernels(device) else torch.bfloat16

    def _weight_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.model.parameters(), *self.model.buffers()))

    def _most_images(self) -> int | None:
        """Images that fit `max_memory` at once; None is no limit.

        Raises: ValueError if not even one does.
        """
        if self.max_memory is None:
            return None
        weights, image = self._weight_bytes(), self.bytes_per_image
        if self.decoder == "parallel":
            weights += influence_bytes(self.model.config.num_colors)
        if self.max_memory < weights + image:
            raise ValueError(
                f"max_memory is {self.max_memory:,} bytes, the weights take {weights:,} and an image {image:,}: "
                "allow more, or choose a smaller precision"
            )
        return (self.max_memory - weights) // image


def _check_model(model: ImageGPTForCausalImageModeling) -> None:
    if not isinstance(model, ImageGPTForCausalImageModeling):
        raise TypeError(f"a {type(model).__name__} cannot draw images: give an ImageGPTForCausalImageModeling")
    if not model.config.is_causal:
        raise ValueError(
            "this model is bidirectional (is_causal=False) and cannot draw pixels in order: give a causal one"
        )
    if model.config.add_cross_attention:
        raise ValueError(
            "this model has cross-attention (add_cross_attention=True) and needs an encoder: use its generate()"
        )


def _split(images: range, most: int | None) -> list[range]:
    size = max(1, len(images) if most is None else most)
    return [images[start : start + size] for start in range(0, len(images), size)]


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
