"""How the weights of projections are stored for sampling: float32, bfloat16 or int8.

Sampling reads every weight once a pixel and does next to nothing with it, so what counts is how many bytes there are. A
format says what is stored, what it stands for, and how to multiply with it in torch's operations. To add one, derive
from `WeightFormat` and call `register_format`.

Axes: M rows of inputs, I inputs, O outputs.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from imagegpt.common.precision import choose_precision, multiplies_bfloat16
from imagegpt.kernels.step import Kind

Precision = Literal["float32", "bfloat16", "int8"]
PrecisionOption = Literal["auto"] | Precision

_INT8_RANGE = 127


class WeightFormat(ABC):
    """How a weight is stored.

    Attributes:
        name: what a user calls the precision.
        dtype: of the stored numbers.
        cache_dtype: in which `TorchStep` keeps keys and values.
        kind: by which the C++ step knows it, or None if it does not.
    """

    name: ClassVar[str]
    dtype: ClassVar[torch.dtype]
    cache_dtype: ClassVar[torch.dtype]
    kind: ClassVar[Kind | None] = None

    @abstractmethod
    def pack(self, rows: Float[Tensor, "o i"]) -> tuple[Shaped[Tensor, "o i"], Float[Tensor, " o"] | None]:
        """The stored weight, a new tensor, and the factor of each output, if there is one."""

    @abstractmethod
    def matmul(self, x: Float[Tensor, "m i"], weight: Shaped[Tensor, "o i"]) -> Float[Tensor, "m o"]:
        """Products with a stored weight, without the factors."""

    def unpack(self, weight: Shaped[Tensor, "o i"], scale: Float[Tensor, " o"] | None) -> Float[Tensor, "o i"]:
        """What a stored weight stands for."""
        return weight if scale is None else weight.float() * scale.unsqueeze(1)


class _Float(WeightFormat):
    def pack(self, rows: Tensor) -> tuple[Tensor, None]:
        return rows.to(self.dtype).clone(memory_format=torch.contiguous_format), None

    def matmul(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.linear(x.to(weight.dtype), weight)


class Float32(_Float):
    """As the model was trained."""

    name, dtype, cache_dtype, kind = "float32", torch.float32, torch.float32, Kind.FLOAT32


class BFloat16(_Float):
    """Half the bytes, 8 bits of precision."""

    name, dtype, cache_dtype, kind = "bfloat16", torch.bfloat16, torch.bfloat16, Kind.BFLOAT16


class Int8(WeightFormat):
    """A quarter of the bytes: one factor an output, chosen so that its largest weight becomes 127."""

    name, dtype, cache_dtype, kind = "int8", torch.int8, torch.bfloat16, Kind.INT8

    def pack(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See `WeightFormat`."""
        wide = rows.float()
        scale = wide.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / _INT8_RANGE
        return (wide / scale.unsqueeze(1)).round().to(torch.int8).contiguous(), scale

    def matmul(self, x: Tensor, weight: Tensor) -> Tensor:
        """See `WeightFormat`."""
        dtype = torch.bfloat16 if multiplies_bfloat16(x.device) else torch.float32
        return functional.linear(x.to(dtype), weight.to(dtype))


_FORMATS: dict[str, WeightFormat] = {one.name: one for one in (Float32(), BFloat16(), Int8())}


def register_format(weight_format: WeightFormat) -> None:
    """Make a format known by its name.

    Raises: ValueError if there is another of that name.
    """
    if weight_format.name in _FORMATS:
        raise ValueError(f"there is a precision {weight_format.name!r} already: choose another name")
    _FORMATS[weight_format.name] = weight_format


def choose_format(precision: str | None, device: torch.device, dtype: torch.dtype) -> WeightFormat | None:
    """The format for a precision.

    Args:
        precision: a name; "auto" is what the device computes fastest, None the model's own dtype.
        device: of the model.
        dtype: likewise.
    Returns: a format, or None for a dtype that has none: such weights stay as they are.
    Raises: ValueError for a precision that nobody registered.
    """
    if precision is None:
        return _FORMATS.get(str(dtype).removeprefix("torch."))
    if precision == "auto":
        precision = choose_precision("auto", device).precision
    if precision not in _FORMATS:
        raise ValueError(
            f"precision is {precision!r}: choose one of auto, {', '.join(_FORMATS)}, or None for the model's"
        )
    return _FORMATS[precision]


assert set(get_args(Precision)) == set(_FORMATS)
