"""What a caller may ask of the sampler: prompts, lengths, how many, and why some of them cannot be drawn.

Axes: B images, P pixels of the prompts, T pixels of the images.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from imagegpt.common import ranges
from imagegpt.common.memory import check_memory
from imagegpt.config import ImageGPTConfig

Prompts = Int64[Tensor, "b p"] | Sequence[Int64[Tensor, " p"]]

_WHOLE_NUMBERS = (torch.int64, torch.int32, torch.int16, torch.uint8)


def checked_length(num_pixels: int | None, config: ImageGPTConfig) -> int:
    """Pixels of the images to draw.

    Raises: ValueError if the model cannot draw so many.
    """
    if num_pixels is None:
        return config.n_positions
    num_pixels = ranges.PIXELS.check("num_pixels", num_pixels)
    if num_pixels > config.n_positions:
        raise ValueError(f"num_pixels is {num_pixels}: this model draws 1 to {config.n_positions} pixels")
    return num_pixels


def checked_prompts(
    prompts: Prompts | None, num_images: int, num_pixels: int, config: ImageGPTConfig
) -> list[Int64[Tensor, " p"]]:
    """One prompt an image, on the CPU.

    Raises: ValueError, saying why, if they cannot be continued to `num_pixels`.
    """
    if prompts is None:
        return [torch.empty(0, dtype=torch.int64)] * num_images
    if isinstance(prompts, Tensor) and prompts.ndim != 2:
        raise ValueError(f"prompts have the shape {tuple(prompts.shape)}: give (images, pixels)")
    if len(prompts) != num_images:
        raise ValueError(f"{num_images} seeds were given for {len(prompts)} prompts: give one seed an image")
    if isinstance(prompts, Tensor):
        return list(_checked_prompt(prompts, num_pixels, config))
    for index, prompt in enumerate(prompts):
        if prompt.ndim != 1:
            raise ValueError(f"prompt {index} has the shape {tuple(prompt.shape)}: give (pixels,)")
    return [_checked_prompt(prompt, num_pixels, config) for prompt in prompts]


def check_room(num_images: int, bytes_per_image: int, device: torch.device) -> None:
    """See that so many images can be drawn at once. A GPU says itself when they cannot, and the batch is halved.

    Raises: ValueError, in one sentence, if not.
    """
    if device.type == "cpu":
        advice = "choose a smaller batch size, or set max_memory and they are drawn in turns"
        check_memory(f"drawing {num_images:,} images at once", num_images * bytes_per_image, advice)


def _checked_prompt(prompt: Int64[Tensor, "*b p"], num_pixels: int, config: ImageGPTConfig) -> Int64[Tensor, "*b p"]:
    if prompt.dtype not in _WHOLE_NUMBERS:
        raise ValueError(f"prompts are {prompt.dtype}: give colour ids as whole numbers, int64 for example")
    if prompt.shape[-1] > num_pixels:
        raise ValueError(
            f"the prompts have {prompt.shape[-1]} pixels, the images are to have {num_pixels}: shorten the prompts"
        )
    if prompt.numel():
        _check_colors(int(prompt.min()), int(prompt.max()), config.num_colors)
    return prompt.to("cpu", torch.int64)


def _check_colors(lowest: int, highest: int, num_colors: int) -> None:
    if highest == num_colors:
        raise ValueError(f"the prompts contain {highest}, the start token: give pixels only, it is put in front here")
    if lowest < 0 or highest > num_colors:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"the prompts contain {wrong}: this model knows colours 0 to {num_colors - 1}")
