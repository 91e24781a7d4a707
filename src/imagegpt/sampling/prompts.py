"""Validation of the sampler's inputs: prompts and image sizes.

Axes: B images, P pixels of the prompts, T pixels of the images.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from imagegpt.common import ranges
from imagegpt.config import ImageGPTConfig

Prompts = Int64[Tensor, "b p"] | Sequence[Int64[Tensor, " p"]]

_INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.uint8)


def resolve_num_pixels(num_pixels: int | None, config: ImageGPTConfig) -> int:
    """Pixels per image; None is all that the model has positions for.

    Raises: ValueError if the model has fewer positions.
    """
    if num_pixels is None:
        return config.n_positions
    num_pixels = ranges.PIXELS.check("num_pixels", num_pixels)
    if num_pixels > config.n_positions:
        raise ValueError(f"num_pixels is {num_pixels}: this model samples 1 to {config.n_positions} pixels")
    return num_pixels


def validate_prompts(
    prompts: Prompts | None, num_images: int, num_pixels: int, config: ImageGPTConfig
) -> list[Int64[Tensor, " p"]]:
    """Return one prompt per image, on the CPU.

    Raises: ValueError if the prompts do not fit the seeds, the model or `num_pixels`.
    """
    if prompts is None:
        return [torch.empty(0, dtype=torch.int64)] * num_images
    if isinstance(prompts, Tensor) and prompts.ndim != 2:
        raise ValueError(f"prompts have the shape {tuple(prompts.shape)}: give (images, pixels)")
    if len(prompts) != num_images:
        raise ValueError(f"{num_images} seeds were given for {len(prompts)} prompts: give one seed per image")
    if isinstance(prompts, Tensor):
        return list(_validate_prompt(prompts, num_pixels, config))
    for index, prompt in enumerate(prompts):
        if prompt.ndim != 1:
            raise ValueError(f"prompt {index} has the shape {tuple(prompt.shape)}: give (pixels,)")
    return [_validate_prompt(prompt, num_pixels, config) for prompt in prompts]


def _validate_prompt(prompt: Int64[Tensor, "*b p"], num_pixels: int, config: ImageGPTConfig) -> Int64[Tensor, "*b p"]:
    if prompt.dtype not in _INTEGER_DTYPES:
        raise ValueError(f"prompts are {prompt.dtype}: give colour ids as integers, for example int64")
    if prompt.shape[-1] > num_pixels:
        raise ValueError(
            f"the prompts have {prompt.shape[-1]} pixels, but the images have only {num_pixels}: shorten the prompts"
        )
    wrong = prompt[(prompt < 0) | (prompt >= config.num_colors)]
    if wrong.numel():
        note = " (the start token, which the sampler adds)" if wrong[0] == config.num_colors else ""
        raise ValueError(f"the prompts contain {wrong[0]}{note}: this model has colours 0 to {config.num_colors - 1}")
    return prompt.to("cpu", torch.int64)
