"""Storage formats of projection weights for sampling: float32, bfloat16 or int8.

Sampling reads every weight once per pixel and does little arithmetic with it, so the size of the weights decides the
speed. A format defines what is stored, how to convert it back, and how to multiply with it in torch. To add one,
subclass `WeightFormat` and register an instance in `WEIGHT_FORMATS`.

Axes: M rows of inputs, I inputs, O outputs.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from imagegpt.common.precision import choose_precision, has_fast_bfloat16
from imagegpt.common.registry import Registry
from imagegpt.kernels.step import DType

Precision = Literal["float32", "bfloat16", "int8"]
PrecisionOption = Literal["auto"] | Precision

_INT8_MAX = 127


class WeightFormat(ABC):
    """A storage format.

    Attributes:
        name: the value of the `precision` option that selects it.
        cache_dtype: of keys and values in `TorchBackend`.
        kernel_dtype: its name in the C++ step, or None if there is no kernel.
    """

    name: ClassVar[str]
    dtype: ClassVar[torch.dtype]
    cache_dtype: ClassVar[torch.dtype]
    kernel_dtype: ClassVar[DType | None] = None

    @abstractmethod
    def pack(self, rows: Float[Tensor, "o i"]) -> tuple[Shaped[Tensor, "o i"], Float[Tensor, " o"] | None]:
        """Convert a weight: return what is stored, in a new tensor, and the scale of each output, if there is one."""

    @abstractmethod
    def matmul(self, x: Float[Tensor, "m i"], weight: Shaped[Tensor, "o i"]) -> Float[Tensor, "m o"]:
        """Multiply inputs by a stored weight, without the scales."""

    def unpack(self, weight: Shaped[Tensor, "o i"], scale: Float[Tensor, " o"] | None) -> Float[Tensor, "o i"]:
        """Convert a stored weight back."""
        return weight if scale is None else weight.float() * scale.unsqueeze(1)


class _FloatFormat(WeightFormat):
    def pack(self, rows: Tensor) -> tuple[Tensor, None]:
        return rows.to(self.dtype).clone(memory_format=torch.contiguous_format), None

    def matmul(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.linear(x.to(weight.dtype), weight)


class Float32(_FloatFormat):
    """Full precision."""

    name, dtype, cache_dtype, kernel_dtype = "float32", torch.float32, torch.float32, DType.FLOAT32


class BFloat16(_FloatFormat):
    """Half the bytes, 8 bits of precision."""

    name, dtype, cache_dtype, kernel_dtype = "bfloat16", torch.bfloat16, torch.bfloat16, DType.BFLOAT16


class Int8(WeightFormat):
    """A quarter of the bytes: symmetric, with one scale per output that maps its largest weight to 127."""

    name, dtype, cache_dtype, kernel_dtype = "int8", torch.int8, torch.bfloat16, DType.INT8

    def pack(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See `WeightFormat`."""
        wide = rows.float()
        scale = wide.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / _INT8_MAX
        return (wide / scale.unsqueeze(1)).round().to(torch.int8).contiguous(), scale

    def matmul(self, x: Tensor, weight: Tensor) -> Tensor:
        """See `WeightFormat`."""
        dtype = torch.bfloat16 if has_fast_bfloat16(x.device) else torch.float32
        return functional.linear(x.to(dtype), weight.to(dtype))


WEIGHT_FORMATS: Registry[WeightFormat] = Registry("precision", "imagegpt.weight_formats")
for _format in (Float32(), BFloat16(), Int8()):
    WEIGHT_FORMATS.register(_format.name)(_format)


def choose_format(precision: str | None, device: torch.device, dtype: torch.dtype) -> WeightFormat | None:
    """The format for a precision.

    Args:
        precision: a name; "auto" is the fastest on the device, None the model's own dtype.
    Returns: a format, or None if the model's dtype has none: its weights are then used unchanged.
    Raises: ValueError for an unknown precision.
    """
    if precision == "auto":
        precision = choose_precision("auto", device).precision
    names = WEIGHT_FORMATS.names()
    if precision is None:
        name = str(dtype).removeprefix("torch.")
        return WEIGHT_FORMATS.get(name) if name in names else None
    if precision not in names:
        raise ValueError(f"precision is {precision!r}: choose one of auto, {', '.join(names)}, or None for the model's")
    return WEIGHT_FORMATS.get(precision)
