"""`ImageGPTPipeline`: sample, complete and fill images with a model and its image processor.

Axes: B images, P pixels of the prompt, T pixels of an image, H rows, W columns.
"""

import copy
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, Unpack, cast

import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor, nn
from transformers.image_processing_utils import BaseImageProcessor

from imagegpt.checkpoints.from_transformers import convert_model, convert_processor
from imagegpt.checkpoints.hub import HubOptions, UploadOptions, upload_model
from imagegpt.checkpoints.loading import check_processor, find_folder, load_model, load_processor
from imagegpt.checkpoints.registry import MODEL_CARD
from imagegpt.checkpoints.saving import save_folder
from imagegpt.common import ranges
from imagegpt.common.devices import choose_device
from imagegpt.images.masks import num_visible_pixels, read_mask
from imagegpt.images.reading import ImageLike
from imagegpt.pipeline.batching import check_images_fit, sample_in_batches
from imagegpt.pipeline.options import LoadOptions, Progress, RuleOptions, SamplerOptions, choose_dtype
from imagegpt.sampling import FillSchedule, Sampler, SamplingRules, fill, image_seed
from imagegpt.sampling.packed_linear import is_lossless


class ImageGPTPipeline:
    """Samples and completes images, or fills hidden pixels if the model is bidirectional (BERT).

    `pipe.model` is the model that computes: in the precision of the sampler, in evaluation mode, not for training.

    Args:
        model: an `ImageGPTForCausalImageModeling` of imagegpt or transformers; copied unless `in_place`.
        processor: with the palette and image size that the model was trained with; of either library.
        **options: `precision`, `decoder`, `backend`, `max_memory` and `in_place`, see `imagegpt.sampling.Sampler`.
            Bidirectional models accept only `in_place`.
    Raises: ValueError if an option does not apply to the model, or the processor does not fit it.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: BaseImageProcessor,
        **options: Unpack[SamplerOptions],
    ) -> None:
        model, self.processor = convert_model(model), convert_processor(processor)
        check_processor(model.config, self.processor)
        self._card: str | None = None
        self._sampler = Sampler(model, **options) if model.config.is_causal else None
        if self._sampler is not None:
            self.model = self._sampler.model
            return
        defaults = {"precision": None, "decoder": "sequential", "backend": "auto", "max_memory": None}
        given = [name for name, value in options.items() if name in defaults and value != defaults[name]]
        if given:
            raise ValueError(
                f"{given[0]} is {cast(Any, options)[given[0]]!r}, and this model is bidirectional (BERT): this "
                "option is for models that sample pixel by pixel, leave it out"
            )
        self.model = (model if options.get("in_place") else copy.deepcopy(model)).eval()

    @property
    def sampler(self) -> Sampler:
        """The sampler of a causal model.

        Raises: ValueError if the model is bidirectional.
        """
        if self._sampler is None:
            raise ValueError(
                "this model is bidirectional (BERT): it fills hidden pixels of images (fill, or imagegpt fill) and "
                "cannot sample or complete them pixel by pixel"
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
            name: a bundled model ("digits"), a folder, or a name on the hub ("openai/imagegpt-small").
            device: None means "cuda" if available, else "cpu".
            dtype: of the loaded weights, a torch dtype or its name; None means float32, so that a seed gives the same
                image on every machine, up to the last bits of the arithmetic.
            **options: `revision`, `cache_dir`, `force_download`, `local_files_only` and `token`, for names on the hub,
                see `imagegpt.checkpoints.hub.HubOptions`; and those of `Sampler`, where `in_place` defaults to True
                here, so that the weights are in memory once.
        Raises: ValueError or OSError if there is no such model or its files are damaged.
        """
        device, dtype = choose_device(device), choose_dtype(dtype)
        hub = cast(HubOptions, {key: options.pop(key) for key in HubOptions.__annotations__ if key in options})
        folder = find_folder(name, **hub)
        model = load_model(folder, dtype=dtype, device=device)
        processor = load_processor(folder, model.config)
        pipe = cls(model, processor, **{"in_place": True, **cast(SamplerOptions, options)})
        if (folder / MODEL_CARD).is_file():
            pipe._card = (folder / MODEL_CARD).read_text(encoding="utf-8")
        return pipe

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write model and processor in the format of transformers; `from_pretrained(folder)` reads them.

        Raises: ValueError if the weights were rounded for sampling; OSError if they cannot be written.
        """
        if self._sampler is not None and not is_lossless(self.model):
            raise ValueError(
                f"the weights were rounded to {self._sampler.plan.precision} for sampling and are no longer those of "
                "the model: load the pipeline without a precision to save it"
            )
        save_folder(self.model, self.processor, folder)

    def push_to_hub(self, name: str, **options: Unpack[UploadOptions]) -> str:
        """Publish model, processor and model card on huggingface.co; `from_pretrained(name)` reads them.

        Args:
            name: on the hub, "owner/model".
            **options: `private`, `token`, `revision`, `commit_message`, `create_pr`, see `UploadOptions`.
        Returns: the URL of the commit.
        Raises: ValueError if the weights were rounded for sampling, or the token has no write access; ConnectionError
            without a connection.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload_model(name, Path(folder), card=self._card, **options)

    def sample(
        self,
        num: int = 1,
        *,
        seed: int = 0,
        batch_size: int | None = None,
        progress: Progress | None = None,
        **rules: Unpack[RuleOptions],
    ) -> list[Image.Image]:
        """Sample images without a prompt.

        Args:
            num: number of images, >= 1.
            seed: 0 to 2^64 - 1; image k depends on (seed, k) alone, not on `num` or `batch_size`.
            batch_size: images per batch; None chooses by memory.
            progress: called after each step with (pixels sampled, pixels in total), over all images.
            **rules: `temperature`, `top_k`, `top_p` and `min_p`, see `SamplingRules`.
        Returns: `num` images of the model's size, mode "RGB", or "L" for a grey palette.
        Raises: ValueError for values outside these ranges.
        """
        num = ranges.NUM_IMAGES.check("num", num)
        prompt = torch.empty(1, 0, dtype=torch.int64)
        (images,) = self.complete_ids(prompt, num=num, seed=seed, batch_size=batch_size, progress=progress, **rules)
        return images

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
        """Keep the upper part of images as the prompt and sample the remaining pixels, several times.

        Args:
            images: one image or several, of any kind and size, see `ImageGPTImageProcessor`.
            keep: fraction of the pixels to keep, see `prompt_length`; half of them by default.
            rows: number of rows to keep, instead of `keep`.
            mask: an image that is white where pixels are kept, instead of `keep`.
            num: number of completions per image, >= 1.
            seed: 0 to 2^64 - 1; completion j depends on (image, seed, j) alone, not on the other images.
            batch_size: images per batch; None chooses by memory.
            progress: called after each step with (pixels sampled, pixels in total), over all images.
            **rules: `temperature`, `top_k`, `top_p` and `min_p`, see `SamplingRules`.
        Returns: for each image a list of `num` completions, in the format of `sample`.
        Raises: ValueError for values outside these ranges, or images that cannot be read.
        """
        length = self.prompt_length(keep, rows=rows, mask=mask)
        prompts = self.encode(images)[:, :length]
        return self.complete_ids(prompts, num=num, seed=seed, batch_size=batch_size, progress=progress, **rules)

    def complete_ids(
        self,
        prompts: Int64[Tensor, "b p"],
        *,
        num: int = 8,
        seed: int = 0,
        batch_size: int | None = None,
        progress: Progress | None = None,
        **rules: Unpack[RuleOptions],
    ) -> list[list[Image.Image]]:
        """Complete images whose first pixels are given as colour ids; the other arguments are those of `complete`.

        Args:
            prompts: colour ids in raster order, for example `encode(images)[:, :prompt_length(rows=4)]`.
        Returns: for each prompt a list of `num` images.
        Raises: ValueError for values outside these ranges.
        """
        if prompts.ndim != 2:
            raise ValueError(f"the ids have the shape {tuple(prompts.shape)}: give (images, pixels)")
        num = ranges.NUM_IMAGES.check("num", num)
        check_images_fit(num * len(prompts), self.model.config.n_positions)
        images = sample_in_batches(
            self.sampler,
            self.processor,
            prompts.repeat_interleave(num, dim=0),
            seeds=[image_seed(seed, index) for index in range(num)] * len(prompts),
            rules=SamplingRules(**rules),
            batch_size=batch_size,
            progress=progress,
        )
        return _grouped(images, num)

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
        """Sample the pixels that a mask hides, anywhere in images, several times; for bidirectional models.

        Args:
            images: one image or several, of any kind and size.
            mask: an image of any size that is black where pixels are hidden, see `read_mask`.
            num: number of samples per image, >= 1.
            seed: 0 to 2^64 - 1; sample j depends on (image, mask, seed, j) alone.
            schedule: number of passes, see `FillSchedule`.
            progress: called after each pass with (passes done, passes in total).
            **rules: `temperature`, `top_k`, `top_p` and `min_p`, see `SamplingRules`.
        Returns: for each image a list of `num` images; visible pixels are unchanged, in the colours of the palette.
        Raises: ValueError for values outside these ranges, a causal model, or images that cannot be read.
        """
        num = ranges.NUM_IMAGES.check("num", num)
        size = self.processor.size
        visible = read_mask(mask, size["height"], size["width"], self.processor.resize_mode)
        if visible.all():
            raise ValueError(f"the mask keeps all of {visible.size} pixels: leave at least one to fill")
        ids = self.encode(images)
        check_images_fit(num * len(ids), self.model.config.n_positions)
        hidden = torch.from_numpy(~visible).flatten().expand(len(ids) * num, -1)
        filled = fill(
            self.model,
            ids.repeat_interleave(num, dim=0).to(self.model.device),
            hidden.to(self.model.device),
            seeds=[image_seed(seed, index) for index in range(num)] * len(ids),
            rules=SamplingRules(**rules),
            schedule=schedule,
            progress=progress or (lambda *_: None),
        )
        return _grouped(self.processor.decode(filled), num)

    def prompt_length(
        self, keep: float | None = None, *, rows: int | None = None, mask: ImageLike | None = None
    ) -> int:
        """Return the number of pixels to keep as the prompt, in raster order from the top.

        Give at most one of the arguments; the default is `keep=0.5`.

        Args:
            keep: fraction of the pixels, in [0, 1), rounded to the nearest pixel (not row; ties to even).
            rows: number of rows, 0 to one less than the image has.
            mask: an image of any size that is black where pixels are hidden, see `read_mask`. Pixels are sampled in
                raster order, so the visible pixels must come first.
        Raises: ValueError if several are given, no pixel remains to sample, or the mask cannot be read.
        """
        size, resize_mode = self.processor.size, self.processor.resize_mode
        return num_visible_pixels(size["height"], size["width"], resize_mode, keep=keep, rows=rows, mask=mask)

    def encode(self, images: ImageLike | Sequence[ImageLike]) -> Int64[Tensor, "b t"]:
        """Convert images to colour ids in raster order, on the CPU."""
        return cast(Tensor, self.processor(cast(Any, images), return_tensors="pt")["input_ids"])

    def quantize(self, images: ImageLike | Sequence[ImageLike]) -> list[Image.Image]:
        """Convert images to the size and the colours of the model."""
        return self.processor.decode(self.encode(images))


def _grouped(images: list[Image.Image], num: int) -> list[list[Image.Image]]:
    """Split a list into lists of `num` images."""
    return [images[start : start + num] for start in range(0, len(images), num)]
