"""What the pipeline may be given by keyword, and where and in which dtype a model is loaded."""

from collections.abc import Callable
from typing import TypedDict, cast

import torch

from imagegpt.checkpoints.hub import HubOptions
from imagegpt.sampling import BackendOption, DecoderName, PrecisionOption

Progress = Callable[[int, int], None]


class RuleOptions(TypedDict, total=False):
    """How pixels are drawn: the fields of `SamplingRules`, as keyword arguments of the verbs that draw."""

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None


class SamplerOptions(TypedDict, total=False):
    """How pixels are computed: keyword arguments of `Sampler`."""

    precision: PrecisionOption | None
    decoder: DecoderName
    backend: BackendOption
    max_memory: int | None
    in_place: bool


class LoadOptions(HubOptions, SamplerOptions, total=False):
    """Keyword arguments of `ImageGPTPipeline.from_pretrained`."""


def choose_device(device: torch.device | str | None) -> torch.device:
    """The device that was asked for, or the GPU if there is one.

    Raises: ValueError if torch knows no such device, it is not there, or models do not run on it.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if str(device).partition(":")[0] == "mps":
        raise ValueError("Apple's GPUs (mps) lack float64, which sampling needs: choose cpu")
    if not _is_usable(device):
        there = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        raise ValueError(f"there is no device {str(device)!r} here: choose from {', '.join(there)}")
    return torch.device(device)


def _is_usable(device: torch.device | str) -> bool:
    """Whether tensors can be made there, and hold numbers; torch finds out only by making one."""
    try:
        return torch.empty(0, device=device).device.type != "meta"
    except (RuntimeError, AssertionError, NotImplementedError):
        return False


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
