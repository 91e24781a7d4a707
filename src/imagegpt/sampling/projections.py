"""The projections of a model laid out for sampling: in float32, bfloat16 or int8, and in the order the kernels like.

Sampling reads every weight once a pixel and does next to nothing with it, so what counts is how many bytes there are
and how they lie. The maths of the model stays where it is: only its `Projection` modules are swapped, and what is
swapped in computes the same affine map, float32 in and out, sums in float32.

Two layouts. "rows": a contiguous row for each output, which torch's own products take. "tiles": the order in which our
kernel reads them (`kernels`), where it can be compiled.
"""

import contextlib
import copy
import ctypes
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from imagegpt.kernels import decoding as kernels
from imagegpt.model.layers import Projection
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.precision import choose_precision, multiplies_bfloat16

Precision = Literal["float32", "bfloat16", "int8"]
PrecisionOption = Literal["auto"] | Precision
Layout = Literal["rows", "tiles"]

FEW = 2  # inputs that get loops of their own where a graph multiplies with rows
_INT8_RANGE = 127


class FrozenProjection(nn.Module):
    """An affine map for inference only, which stands in for a `Projection`.

    Args:
        projection: the one to stand in for, frozen already or not; its bias is shared, its weight copied.
        precision: how the weight is stored; int8 has one scale an output, chosen so that the largest weight of a row
            becomes 127.
    """

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, projection: "Projection | FrozenProjection", precision: Precision) -> None:
        super().__init__()
        self.in_features, self.out_features = projection.in_features, projection.out_features
        self.precision, self.layout = precision, "rows"
        is_frozen = isinstance(projection, FrozenProjection)
        given = projection.dense_weight() if is_frozen else projection.weight.detach()
        weight, scale = _stored(given.t(), precision)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if projection.bias is None else projection.bias.detach().float())
        self.is_exact = given.dtype == weight.dtype and not (is_frozen and not projection.is_exact)

    def lay_out(self, layout: Layout) -> None:
        """Bring the weight into a layout; what the kernel cannot multiply with stays in rows."""
        if layout == "tiles" and self.layout == "rows" and kernels.can_tile(self.weight):
            self.weight, self.layout = kernels.tiled(self.weight), "tiles"
        elif layout == "rows" and self.layout == "tiles":
            self.weight, self.layout = self._rows(), "rows"

    def forward(self, x: Float[Tensor, "*lead i"]) -> Float[Tensor, "*lead o"]:
        """Map (..., in) to (..., out), in the dtype of `x`."""
        flat = x.reshape(-1, self.in_features)
        if self.layout == "rows" and not torch.compiler.is_compiling() and self.weight.dtype == x.dtype:
            return functional.linear(flat, self.weight, self.bias).view(*x.shape[:-1], self.out_features)
        out = self._product(flat)
        if self.bias is not None:
            out = out + self.bias
        return out.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Called by `half()`, `to()` and the like: tiles are in the order of one dtype and of the CPU's kernel.
        self.lay_out("rows")
        scale = self.scale
        super()._apply(fn, recurse)
        if scale is not None:  # float32 in every precision
            self.scale = scale.to(self.weight.device)
        return self

    def _product(self, x: Float[Tensor, "m i"]) -> Float[Tensor, "m o"]:
        if self.layout == "tiles":
            return kernels.tiled_linear(x.float(), self.weight, self.scale, self.out_features)
        if torch.compiler.is_compiling() and isinstance(x.shape[0], int) and x.shape[0] <= FEW:
            # A sum for each input: the loops that are generated for them are fused, and read the weight once. One sum
            # over all inputs would be vectorised along these, and take ten times as long.
            weight = self.weight.float()
            out = torch.stack([(weight * row).sum(-1) for row in x.float().unbind(0)])
        elif self.scale is not None:
            # torch._weight_int8pack_mm would not convert, but is wrong for some sizes and slow for others.
            dtype = torch.bfloat16 if multiplies_bfloat16(x.device) else torch.float32
            out = functional.linear(x.to(dtype), self.weight.to(dtype)).float()
        else:
            out = functional.linear(x.to(self.weight.dtype), self.weight).float()
        return out if self.scale is None else out * self.scale

    def _rows(self) -> Tensor:
        return kernels.untiled(self.weight, self.out_features) if self.layout == "tiles" else self.weight

    def dense_weight(self) -> Float[Tensor, "i o"]:
        """The weight as a `Projection` stores it, (in, out); of int8, what it stands for in float32."""
        rows = self._rows()
        if self.scale is not None:
            rows = rows.float() * self.scale.unsqueeze(1)
        return rows.t().contiguous()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        # By the names and in the layout of the `Projection`, so that what is saved can be loaded as the model.
        destination[prefix + "weight"] = self.dense_weight()
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias

    def extra_repr(self) -> str:
        """Sizes, precision and layout, for `print(model)`."""
        return f"{self.in_features}, {self.out_features}, {self.precision}, {self.layout}"


def freeze(
    model: ImageGPTForCausalImageModeling, precision: Precision | None, *, in_place: bool
) -> ImageGPTForCausalImageModeling:
    """The model with its projections laid out for sampling.

    Args:
        model: in float32 or bfloat16, if a precision is given also in other dtypes.
        precision: of the projections; None is the model's own, and leaves those that are frozen as they are. Everything
            else computes in float32, unless the model is in float16 or float64 and the precision None: then nothing is
            swapped.
        in_place: swap them in the model itself, one after the other, so that there are never two sets of weights;
            otherwise the model given stays as it is, and what becomes of it later does not matter here.
    Returns: a model in evaluation mode.
    """
    if not in_place:
        # Projections are in the memo and so are shared, not copied, until they are swapped.
        model = copy.deepcopy(model, {id(projection): projection for projection in _projections(model).values()})
    own = model.dtype
    if precision is None and own not in (torch.float32, torch.bfloat16):
        return model.eval()
    chosen = str(own).removeprefix("torch.") if precision is None else precision
    frozen = {name: module for name, module in model.named_modules() if isinstance(module, FrozenProjection)}
    again = {name: module for name, module in frozen.items() if precision not in (None, module.precision)}
    for name, projection in {**_projections(model), **again}.items():
        _replace(model, name, FrozenProjection(projection, cast(Precision, chosen)))
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            _replace(model, name, nn.Parameter(parameter.detach().float(), requires_grad=parameter.requires_grad))
    if in_place:
        _return_freed_memory()
    return model.eval()


def lay_out(model: nn.Module, layout: Layout) -> None:
    """Bring the projections of a frozen model into a layout, one after the other."""
    others = [module for module in model.modules() if isinstance(module, FrozenProjection) and module.layout != layout]
    for module in others:
        module.lay_out(layout)
    if others:
        _return_freed_memory()


def is_exact(model: nn.Module) -> bool:
    """Whether the weights are what they were before the model was frozen."""
    return all(module.is_exact for module in model.modules() if isinstance(module, FrozenProjection))


def resolve_precision(precision: PrecisionOption | None, device: torch.device) -> Precision | None:
    """What "auto" stands for on a device; everything else as it is.

    Raises: ValueError for what we do not know.
    """
    if precision is not None and precision not in ("auto", *get_args(Precision)):
        raise ValueError(
            f"precision is {precision!r}: choose one of auto, {', '.join(get_args(Precision))}, or None for the model's"
        )
    return choose_precision("auto", device).precision if precision == "auto" else precision


def _stored(rows: Float[Tensor, "o i"], precision: Precision) -> tuple[Tensor, Tensor | None]:
    """The weight in its precision, (out, in), and the scale of each row if there is one."""
    if precision != "int8":
        return rows.to(getattr(torch, precision)).clone(memory_format=torch.contiguous_format), None
    wide = rows.float()
    scale = wide.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / _INT8_RANGE
    return (wide / scale.unsqueeze(1)).round().to(torch.int8).contiguous(), scale


def _projections(model: nn.Module) -> dict[str, Projection]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Projection)}


def _return_freed_memory() -> None:
    """Give what was freed back to the system: glibc would keep 30 MB of iGPT-S for itself."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # where there is no glibc
        ctypes.CDLL(None).malloc_trim(0)


def _replace(model: nn.Module, name: str, part: nn.Module | nn.Parameter) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, part)
