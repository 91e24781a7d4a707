"""The few verbs most people need: draw images, complete them, fill them. A model and its processor at work together.

Axes: B images, P pixels that are kept, T pixels of an image, H rows and W columns of it.
"""

import copy
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, Unpack, cast

import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor, nn
from transformers.image_processing_utils import BaseImageProcessor

from imagegpt.checkpoints.from_transformers import our_model, our_processor
from imagegpt.checkpoints.hub import HubOptions, PublishOptions, publish
from imagegpt.checkpoints.loading import check_fit, find_folder, load_model, load_processor
from imagegpt.checkpoints.registry import MODEL_CARD
from imagegpt.checkpoints.saving import save_folder
from imagegpt.common import ranges
from imagegpt.common.memory import check_memory
from imagegpt.images.masks import pixels_of_mask, pixels_of_rows, pixels_of_share, read_mask
from imagegpt.images.reading import ImageLike
from imagegpt.pipeline.options import LoadOptions, Progress, RuleOptions, SamplerOptions, choose_device, choose_dtype
from imagegpt.sampling import FillSchedule, Sampler, SamplingRules, fill, image_seed
from imagegpt.sampling.packed_linear import is_exact

_BYTES_PER_PIXEL = 3 + 8  # of an image that is kept: its colours, and the ids of its prompt


class ImageGPTPipeline:
    """Draws and completes images, or fills what is hidden of them if the model is bidirectional (BERT).

    `pipe.model` is the model as it is run: in the sampler's precision, in evaluation mode, and not to be trained.

    Args:
        model: an `ImageGPTForCausalImageModeling`, of imagegpt or of transformers; it is copied, unless `in_place`.
        processor: with the palette and the image size the model was trained with; of either library.
        **options: `precision`, `decoder`, `backend`, `max_memory` and `in_place`, see `imagegpt.sampling.Sampler`.
            They are a causal model's; a bidirectional one takes `in_place` only.
    Raises: ValueError if the options are not the model's, or processor and model do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: BaseImageProcessor,
        **options: Unpack[SamplerOptions],
    ) -> None:
        model, self.processor = our_model(model), our_processor(processor)
        check_fit(model.config, self.processor)
        self._card: str | None = None
        self._sampler = Sampler(model, **options) if model.config.is_causal else None
        if self._sampler is not None:
            self.model = self._sampler.model
            return
        own = {"precision": None, "decoder": "sequential", "backend": "auto", "max_memory": None}
        given = [name for name, value in options.items() if name in own and value != own[name]]
        if given:
            raise ValueError(
                f"{given[0]} is {cast(Any, options)[given[0]]!r}, and this model is bidirectional (BERT): that is for "
                "models that draw pixel by pixel, leave it out"
            )
        self.model = (model if options.get("in_place") else copy.deepcopy(model)).eval()

    @property
    def sampler(self) -> Sampler:
        """What draws pixel by pixel.

        Raises: ValueError if the model is bidirectional, and cannot.
        """
        if self._sampler is None:
            raise ValueError(
                "this model is bidirectional (BERT): it fills hidden pixels of images (fill, or imagegpt fill), and "
                "cannot draw or complete them pixel by pixel"
            )
        return self._sampler

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        **options: Unpack[LoadOptions],
    ) -> Self:
        """Load a model by name.

        Args:
            name: of a bundled model ("digits"), a folder, or a name on the hub ("openai/imagegpt-small").
            device: None is "cuda" where there is one, else "cpu".
            dtype: of the weights as they are loaded, a torch dtype or its name; None is float32 everywhere, so that a
                seed gives the same image on every machine, to the last bits of the arithmetic.
            **options: `revision`, `cache_dir`, `force_download`, `local_files_only` and `token`, for names on the hub,
                see `imagegpt.checkpoints.hub.HubOptions`; and those of `Sampler`, of which `in_place` is True here, so
                that the weights are in memory once.
        Raises: ValueError or OSError, in one sentence, if there is no such model or its files are not in order.
        """
        target, loaded = choose_device(device), choose_dtype(dtype)
        hub = cast(HubOptions, {key: options.pop(key) for key in HubOptions.__annotations__ if key in options})
        folder = find_folder(name, **hub)
        model = load_model(folder, dtype=loaded, device=target)
        processor = load_processor(folder, model.config)
        pipe = cls(model, processor, **{"in_place": True, **cast(SamplerOptions, options)})
        if (folder / MODEL_CARD).is_file():
            pipe._card = (folder / MODEL_CARD).read_text(encoding="utf-8")
        return pipe

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write model and processor as transformers does; `from_pretrained(folder)` reads them back.

        Raises: ValueError if the weights were rounded for sampling; OSError if they cannot be written.
        """
        if self._sampler is not None and not is_exact(self.model):
            raise ValueError(
                f"the weights were rounded to {self._sampler.plan.precision} for sampling and are not the model's any "
                "more: load the pipeline without a precision to save it"
            )
        save_folder(self.model, self.processor, folder)

    def push_to_hub(self, name: str, **options: Unpack[PublishOptions]) -> str:
        """Publish model, processor and model card on huggingface.co; `from_pretrained(name)` reads them back.

        Args:
            name: on the hub, "owner/model".
            **options: `private`, `token`, `revision`, `commit_message`, `create_pr`, see `PublishOptions`.
        Returns: the address of the commit.
        Raises: ValueError if the weights were rounded for sampling, or the token may not write there; ConnectionError
            without a connection.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return publish(name, Path(folder), card=self._card, **options)

    def sample(
        self,
        num: int = 1,
        *,
        seed: int = 0,
        batch_size: int | None = None,
        progress: Progress | None = None,
        **rules: Unpack[RuleOptions],
    ) -> list[Image.Image]:
        """Draw images from nothing.

        Args:
            num: images, >= 1.
            seed: 0 to 2^64 - 1; image k depends on (seed, k) alone, not on `num` or `batch_size`.
            batch_size: images at a time; None chooses by memory.
            progress: called after each step with the pixels drawn and the pixels there will be, of all images.
            **rules: `temperature`, `top_k`, `top_p` and `min_p`, see `SamplingRules`.
        Returns: `num` images of the model's size, mode "RGB", or "L" for a grey palette.
        Raises: ValueError for values outside these ranges.
        """
        num = ranges.NUM_IMAGES.check("num", num)
        self._check_memory(num)
        seeds = [image_seed(seed, index) for index in range(num)]
        prompts = torch.empty(num, 0, dtype=torch.int64)
        return self._draw(prompts, seeds, SamplingRules(**rules), batch_size, progress)

    def complete(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        keep: float | None = None,
        rows: int | None = None,
        mask: ImageLike | None = None,
        num: int = 8,
        seed: int = 0,
        batch_size: int | None = None,
        progress: Progress | None = None,
        **rules: Unpack[RuleOptions],
    ) -> list[list[Image.Image]]:
        """Keep the upper part of images and draw the rest, several times.

        Args:
            images: one image or several, of any kind and size, see `ImageGPTImageProcessor`.
            keep: what is kept as a share of the pixels, see `num_kept_pixels`; half of them if nothing else is said.
            rows: the same as a number of rows from the top.
            mask: the same as an image that is white where pixels are kept.
            num: completions of each image, >= 1.
            seed: 0 to 2^64 - 1; completion j depends on (image, seed, j) alone, whatever it is drawn with.
            batch_size: images at a time; None chooses by memory.
            progress: called after each step with the pixels drawn and the pixels there will be, of all images.
            **rules: `temperature`, `top_k`, `top_p` and `min_p`, see `SamplingRules`.
        Returns: for each image a list of `num` completions, whole images as `sample` gives them.
        Raises: ValueError for values outside these ranges, or images that cannot be read.
        """
        num_kept = self.num_kept_pixels(keep, rows=rows, mask=mask)
        kept = self.encode(images)[:, :num_kept]
        return self.complete_ids(kept, num=num, seed=seed, batch_size=batch_size, progress=progress, **rules)

    def complete_ids(
        self,
        kept: Int64[Tensor, "b p"],
        *,
        num: int = 8,
        seed: int = 0,
        batch_size: int | None = None,
        progress: Progress | None = None,
        **rules: Unpack[RuleOptions],
    ) -> list[list[Image.Image]]:
        """Complete images of which the first pixels are given as colour ids.

        Args:
            kept: the pixels in raster order, for example `encode(images)[:, :num_kept_pixels(rows=4)]`.
            num: see `complete`, as are the others.
            seed: likewise.
            batch_size: likewise.
            progress: likewise.
            **rules: likewise.
        Returns: for each row a list of `num` whole images.
        Raises: ValueError for values outside these ranges.
        """
        if kept.ndim != 2:
            raise ValueError(f"the ids have the shape {tuple(kept.shape)}: give (images, pixels)")
        num = ranges.NUM_IMAGES.check("num", num)
        self._check_memory(num * len(kept))
        seeds = [image_seed(seed, index) for index in range(num)] * len(kept)
        prompts = kept.repeat_interleave(num, dim=0)
        drawn = self._draw(prompts, seeds, SamplingRules(**rules), batch_size, progress)
        return [drawn[start : start + num] for start in range(0, len(drawn), num)]

    def fill(
        self,
        images: ImageLike | Sequence[ImageLike],
        mask: ImageLike,
        *,
        num: int = 8,
        seed: int = 0,
        schedule: FillSchedule | None = None,
        progress: Progress | None = None,
        **rules: Unpack[RuleOptions],
    ) -> list[list[Image.Image]]:
        """Draw what a mask hides of images, wherever it is, several times; for bidirectional models.

        Args:
            images: one image or several, of any kind and size.
            mask: an image of any size that is black where pixels are to be drawn and anything else where they are kept,
                see `read_mask`.
            num: fillings of each image, >= 1.
            seed: 0 to 2^64 - 1; filling j depends on (image, mask, seed, j) alone.
            schedule: in how many passes, see `FillSchedule`.
            progress: called after each pass with passes done and passes in all.
            **rules: `temperature`, `top_k`, `top_p` and `min_p`, see `SamplingRules`.
        Returns: for each image a list of `num` whole images; what was kept is as it was, in the palette's colours.
        Raises: ValueError for values outside these ranges, a causal model, or images that cannot be read.
        """
        num = ranges.NUM_IMAGES.check("num", num)
        height, width = self.processor.size["height"], self.processor.size["width"]
        kept = read_mask(mask, height, width, self.processor.resize_mode)
        if kept.all():
            raise ValueError(f"the mask keeps all of {kept.size} pixels: leave at least one to fill")
        ids = self.encode(images)
        self._check_memory(num * len(ids))
        hidden = torch.from_numpy(~kept).flatten().expand(len(ids) * num, -1)
        filled = fill(
            self.model,
            ids.repeat_interleave(num, dim=0).to(self.model.device),
            hidden.to(self.model.device),
            seeds=[image_seed(seed, index) for index in range(num)] * len(ids),
            rules=SamplingRules(**rules),
            schedule=schedule,
            progress=progress or (lambda *_: None),
        )
        drawn = self.processor.decode(filled)
        return [drawn[start : start + num] for start in range(0, len(drawn), num)]

    def num_kept_pixels(
        self, keep: float | None = None, *, rows: int | None = None, mask: ImageLike | None = None
    ) -> int:
        """How many pixels, in raster order from the top, are kept. Give one of the three; none of them is `keep=0.5`.

        Args:
            keep: share of the pixels, in [0, 1): the nearest whole number (not whole rows; halves go to the even one).
            rows: whole rows, 0 to one less than there are.
            mask: an image of any size that is black where pixels are to be drawn and anything else where they are kept,
                see `read_mask`. Pixels are drawn in raster order, so that those that are kept must come first.
        Raises: ValueError if that is not given, or leaves no pixel to draw, or the mask cannot be read.
        """
        height, width = self.processor.size["height"], self.processor.size["width"]
        given = {"keep": keep, "rows": rows, "mask": mask}
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise ValueError(f"{' and '.join(names)} each say what is kept: give one of them")
        if rows is not None:
            return pixels_of_rows(rows, height, width)
        if mask is not None:
            return pixels_of_mask(read_mask(mask, height, width, self.processor.resize_mode))
        return pixels_of_share(0.5 if keep is None else keep, height * width)

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
        given = ranges.BATCH.check_if_given("batch_size", batch_size)
        batch_size = self.sampler.plan.batch_size if given is None else given
        drawn_before, per_image = 0, self.model.config.n_positions - prompts.shape[1]
        images: list[Image.Image] = []
        for batch in _batches(len(seeds), batch_size):
            told = None if progress is None else _counter(progress, drawn_before, len(seeds) * per_image)
            rows = slice(batch.start, batch.stop)
            ids = self.sampler.generate(prompts[rows], seeds=seeds[rows], rules=rules, on_progress=told)
            images += self.processor.decode(ids)
            drawn_before += len(batch) * per_image
        return images

    def _check_memory(self, num: int) -> None:
        """See that there is memory for the images themselves, which are all kept until the last is drawn."""
        num_bytes = num * self.model.config.n_positions * _BYTES_PER_PIXEL
        check_memory(
            f"keeping {num:,} images",
            num_bytes,
            "ask for fewer, or write them to a folder (imagegpt sample --out FOLDER)",
        )


def _batches(num: int, batch_size: int) -> Iterator[range]:
    for start in range(0, num, batch_size):
        yield range(start, min(start + batch_size, num))


def _counter(progress: Progress, before: int, total: int) -> Callable[[int], None]:
    """Tell `progress` how many pixels of how many are done, when so many of this batch are."""
    return lambda drawn: progress(before + drawn, total)
