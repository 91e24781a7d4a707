"""Keyword arguments of the pipeline, and the choice of dtype."""

from collections.abc import Callable
from typing import TypedDict, cast

import torch

from imagegpt.checkpoints.hub import HubOptions
from imagegpt.sampling import BackendOption, DecoderName, PrecisionOption

Progress = Callable[[int, int], None]


class RuleOptions(TypedDict, total=False):
    """Fields of `SamplingRules` as keyword arguments of the methods that sample."""

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None


class SamplerOptions(TypedDict, total=False):
    """Keyword arguments of `Sampler`."""

    precision: PrecisionOption | None
    decoder: DecoderName
    backend: BackendOption
    max_memory: int | None
    in_place: bool


class LoadOptions(HubOptions, SamplerOptions, total=False):
    """Keyword arguments of `ImageGPTPipeline.from_pretrained`."""


def choose_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """Return the requested dtype, given as a dtype or its name; for None, float32.

    Raises: ValueError unless models can compute in it.
    """
    if dtype is None:
        return torch.float32
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
    chosen = names.get(dtype) if isinstance(dtype, str) else dtype
    if chosen not in names.values():
        raise ValueError(f"dtype is {dtype!r}: choose one of {', '.join(names)}")
    return cast(torch.dtype, chosen)
