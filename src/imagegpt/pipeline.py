"""The few verbs most people need: draw images, complete images. A model and its processor, put to work together.

Axes: B images, P pixels that are kept, T pixels of an image.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, cast

import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from imagegpt.checkpoints.loading import check_fit, find_folder, load_model, load_processor
from imagegpt.model import cost
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.processing import ImageGPTImageProcessor, ImageLike
from imagegpt.sampling import Sampler, SamplingRules, image_seed

Progress = Callable[[int, int], None]

# Batches are chosen so that keys and values take this much, or half of what is free on a GPU. Larger batches gain
# little on a CPU, where 8 images already share each read of the weights.
_CACHE_BYTES_ON_CPU = 1 << 30
_LARGEST_BATCH = 256


class ImageGPTPipeline:
    """Draws and completes images.

    Args:
        model: a causal model; put into evaluation mode.
        processor: with the palette and the image size the model was trained with.
    Raises: ValueError if the model cannot sample, or processor and model do not fit.
    """

    def __init__(self, model: ImageGPTForCausalImageModeling, processor: ImageGPTImageProcessor) -> None:
        self.sampler = Sampler(model)
        check_fit(model.config, processor)
        self.model = model.eval()
        self.processor = processor

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
    ) -> Self:
        """Load a model by name.

        Args:
            name: of a bundled model ("digits"), a folder, or a name on the hub ("openai/imagegpt-small").
            device: None is "cuda" where there is one, else "cpu".
            dtype: of the weights, a torch dtype or its name; None is float32 everywhere, so that a seed gives the same
                image on every machine, to the last bits of the arithmetic.
            revision: branch, tag or commit, for names on the hub.
        Raises: ValueError or OSError, in one sentence, if there is no such model or its files are not in order.
        """
        target, precision = choose_device(device), choose_dtype(dtype)
        folder = find_folder(name, revision=revision)
        model = load_model(folder, dtype=precision, device=target)
        return cls(model, load_processor(folder, model.config))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write model and processor as transformers does; `from_pretrained(folder)` reads them back."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(os.fspath(folder))

    def sample(
        self,
        num: int = 1,
        *,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> list[Image.Image]:
        """Draw images from nothing.

        Args:
            num: images, >= 1.
            seed: 0 to 2^64 - 1; image k depends on (seed, k) alone, not on `num` or `batch_size`.
            temperature: see `SamplingRules`, as are `top_k` and `top_p`.
            top_k: likewise.
            top_p: likewise.
            batch_size: images at a time; None chooses by memory.
            progress: called after each step with the pixels drawn and the pixels there will be, of all images.
        Returns: `num` images of the model's size, mode "RGB", or "L" for a grey palette.
        Raises: ValueError for values outside these ranges.
        """
        rules = SamplingRules(temperature=temperature, top_k=top_k, top_p=top_p)
        _check_count("num", num)
        seeds = [image_seed(seed, index) for index in range(num)]
        prompts = torch.empty(num, 0, dtype=torch.int64)
        return self._draw(prompts, seeds, rules, batch_size, progress)

    def complete(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        keep: float = 0.5,
        num: int = 8,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> list[list[Image.Image]]:
        """Keep the upper part of images and draw the rest, several times.

        Args:
            images: one image or several, of any kind and size, see `ImageGPTImageProcessor`.
            keep: share of the pixels to keep, in [0, 1), in raster order from the top: see `num_kept_pixels`.
            num: completions of each image, >= 1.
            seed: 0 to 2^64 - 1; completion j depends on (image, seed, j) alone, whatever it is drawn with.
            temperature: see `SamplingRules`, as are `top_k` and `top_p`.
            top_k: likewise.
            top_p: likewise.
            batch_size: images at a time; None chooses by memory.
            progress: called after each step with the pixels drawn and the pixels there will be, of all images.
        Returns: for each image a list of `num` completions, whole images as `sample` gives them.
        Raises: ValueError for values outside these ranges, or images that cannot be read.
        """
        rules = SamplingRules(temperature=temperature, top_k=top_k, top_p=top_p)
        _check_count("num", num)
        num_kept = self.num_kept_pixels(keep)
        seeds = [image_seed(seed, index) for index in range(num)]
        kept = self.encode(images)[:, :num_kept]
        drawn = self._draw(kept.repeat_interleave(num, dim=0), seeds * len(kept), rules, batch_size, progress)
        return [drawn[start : start + num] for start in range(0, len(drawn), num)]

    def num_kept_pixels(self, keep: float) -> int:
        """How many pixels a share stands for: the nearest whole number (not whole rows; halves go to the even one).

        Raises: ValueError unless 0 <= keep < 1 and at least one pixel is left to draw.
        """
        num_pixels = self.model.config.n_positions
        if not 0 <= keep < 1:
            raise ValueError(f"keep is {keep}: the share of the pixels to keep must be at least 0 and less than 1")
        num_kept = round(keep * num_pixels)
        if num_kept == num_pixels:
            raise ValueError(f"keep is {keep}, which is all of {num_pixels} pixels: leave at least one to complete")
        return num_kept

    def encode(self, images: ImageLike | Sequence[ImageLike]) -> Int64[Tensor, "b t"]:
        """Images as colour ids in raster order, on the CPU."""
        return cast(Tensor, self.processor(cast(Any, images), return_tensors="pt")["input_ids"])

    def reduce(self, images: ImageLike | Sequence[ImageLike]) -> list[Image.Image]:
        """Images as the model sees them: its size, its colours."""
        return self.processor.decode(self.encode(images))

    def _draw(
        self,
        prompts: Int64[Tensor, "b p"],
        seeds: list[int],
        rules: SamplingRules,
        batch_size: int | None,
        progress: Progress | None,
    ) -> list[Image.Image]:
        if batch_size is None:
            batch_size = self._default_batch_size()
        _check_count("batch_size", batch_size)
        drawn_before, per_image = 0, self.model.config.n_positions - prompts.shape[1]
        images: list[Image.Image] = []
        for batch in _batches(len(seeds), batch_size):
            on_pixel = None
            if progress is not None:
                on_pixel = _counter(progress, drawn_before, len(batch), prompts.shape[1], len(seeds) * per_image)
            rows = slice(batch.start, batch.stop)
            ids = self.sampler.generate(prompts[rows], seeds=seeds[rows], rules=rules, on_pixel=on_pixel)
            images += self.processor.decode(ids)
            drawn_before += len(batch) * per_image
        return images

    def _default_batch_size(self) -> int:
        """Images whose keys and values fit the memory set aside for them; at least 1."""
        config, device = self.model.config, self.model.device
        bytes_per_image = config.n_positions * cost.cache_bytes_per_pixel(config, self.model.dtype.itemsize)
        room = _CACHE_BYTES_ON_CPU if device.type != "cuda" else torch.cuda.mem_get_info(device)[0] // 2
        return max(1, min(_LARGEST_BATCH, room // bytes_per_image))


def choose_device(device: torch.device | str | None) -> torch.device:
    """The device that was asked for, or the GPU if there is one.

    Raises: ValueError if torch knows no such device or it is not there.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError):
        there = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        raise ValueError(f"there is no device {str(device)!r} here: choose from {', '.join(there)}") from None
    return chosen


def choose_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """The dtype that was asked for, or float32.

    Raises: ValueError unless it is one that a model can compute in.
    """
    if dtype is None:
        return torch.float32
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
    chosen = names.get(dtype) if isinstance(dtype, str) else dtype
    if chosen not in names.values():
        raise ValueError(f"dtype is {dtype!r}: choose one of {', '.join(names)}")
    return cast(torch.dtype, chosen)


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}: it must be a whole number of at least 1")


def _batches(num: int, batch_size: int) -> Iterator[range]:
    for start in range(0, num, batch_size):
        yield range(start, min(start + batch_size, num))


def _counter(progress: Progress, before: int, batch: int, first: int, total: int) -> Callable[[int, Any], None]:
    """Tell `progress` how many pixels of how many are done, when the pixel after `first` others has been drawn."""
    return lambda pixel, _: progress(before + batch * (pixel + 1 - first), total)
