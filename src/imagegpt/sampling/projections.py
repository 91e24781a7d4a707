"""The projections of a model laid out for sampling: in float32, bfloat16 or int8, and in the order the kernels like.

Sampling reads every weight once a pixel and does next to nothing with it, so what counts is how many bytes there are
and how they lie. The maths of the model stays where it is: only its `Projection` modules are swapped, and what is
swapped in computes the same affine map, float32 in and out, sums in float32.

Two layouts. "rows": a contiguous row for each output, which a compiled loop reads at memory speed for one input or two.
"packed": oneDNN's blocked order, for many inputs at once. On two cores that read 26-31 GB/s, all projections of iGPT-S
in float32 took 10 ms as rows for one input, where oneDNN took 14; for 16 inputs oneDNN took 18 ms, a plain product 42.
"""

import contextlib
import copy
import ctypes
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from imagegpt.model.layers import Projection
from imagegpt.model.modeling import ImageGPTForCausalImageModeling

Precision = Literal["auto", "float32", "bfloat16", "int8"]
Layout = Literal["rows", "packed"]

ROWS_LIMIT = 2  # inputs up to which the loop over rows wins; beyond, the blocked product does
_SMALL_WORK = 1 << 19  # multiplications that a loop does in the time it takes to call a library
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
        self.is_packed = False  # not asked of the weight: while tracing it does not know
        is_frozen = isinstance(projection, FrozenProjection)
        given = projection.dense_weight() if is_frozen else projection.weight.detach()
        weight, scale = _stored(given.t(), precision)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if projection.bias is None else projection.bias.detach().float())
        self.is_exact = given.dtype == weight.dtype and not (is_frozen and not projection.is_exact)

    def lay_out(self, layout: Layout) -> None:
        """Bring the weight into a layout; where oneDNN cannot pack it, "packed" is an ordinary matrix product."""
        self.layout = layout
        if layout == "packed" and not self.is_packed and can_pack(self.weight):
            self.weight, self.is_packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, None), True
        elif layout == "rows" and self.is_packed:
            self.weight, self.is_packed = self.weight.to_dense().contiguous(), False

    def forward(self, x: Float[Tensor, "*lead i"]) -> Float[Tensor, "*lead o"]:
        """Map (..., in) to (..., out), in the dtype of `x`."""
        flat = x.reshape(-1, self.in_features)
        if not self.is_packed and not torch.compiler.is_compiling() and self.weight.dtype == x.dtype:
            return functional.linear(flat, self.weight, self.bias).view(*x.shape[:-1], self.out_features)
        out = self._product(flat)
        if self.bias is not None:
            out = out + self.bias
        return out.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _product(self, x: Float[Tensor, "m i"]) -> Float[Tensor, "m o"]:
        if self.is_packed:
            return torch.ops.imagegpt.packed_linear(x.to(self.weight.dtype), self.weight).float()
        if torch.compiler.is_compiling() and isinstance(x.shape[0], int) and x.shape[0] <= ROWS_LIMIT:
            # A sum for each input: the loops that are generated for them are fused, and read the weight once. One sum
            # over all inputs would be vectorised along these, and take ten times as long.
            weight = self.weight.float()
            out = torch.stack([(weight * row).sum(-1) for row in x.float().unbind(0)])
        elif self.scale is not None:
            # torch._weight_int8pack_mm would not convert, but is wrong for some sizes and slow for others.
            dtype = torch.bfloat16 if _is_fast(torch.bfloat16, x.device) else torch.float32
            out = functional.linear(x.to(dtype), self.weight.to(dtype)).float()
        else:
            out = functional.linear(x.to(self.weight.dtype), self.weight).float()
        return out if self.scale is None else out * self.scale

    def dense_weight(self) -> Float[Tensor, "i o"]:
        """The weight as a `Projection` stores it, (in, out); of int8, what it stands for in float32."""
        rows = self.weight.to_dense() if self.is_packed else self.weight
        if self.scale is not None:
            rows = rows.float() * self.scale.unsqueeze(1)
        return rows.t().contiguous()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        # By the names and in the layout of the `Projection`, so that what is saved can be loaded as the model.
        destination[prefix + "weight"] = self.dense_weight()
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias

    def __getstate__(self) -> dict[str, Any]:
        """What is copied or pickled: torch can do neither with a packed weight, so the copy lies in rows."""
        state = self.__dict__.copy()
        if self.is_packed:
            state["_buffers"] = {**self._buffers, "weight": self.weight.to_dense().contiguous()}
            state["is_packed"], state["layout"] = False, "rows"
        return state

    def extra_repr(self) -> str:
        """Sizes, precision and layout, for `print(model)`."""
        return f"{self.in_features}, {self.out_features}, {self.precision}, {self.layout}"


def freeze(
    model: ImageGPTForCausalImageModeling, precision: Precision, *, in_place: bool
) -> ImageGPTForCausalImageModeling:
    """The model with its projections laid out for sampling.

    Args:
        model: in float32 or bfloat16, for a precision other than "auto" also in other dtypes.
        precision: of the projections; "auto" is the model's own, and leaves those that are frozen as they are.
            Everything else computes in float32, unless the model is in float16 or float64 and the precision "auto":
            then nothing is swapped.
        in_place: swap them in the model itself, one after the other, so that there are never two sets of weights;
            otherwise the model given stays as it is, and what becomes of it later does not matter here.
    Returns: a model in evaluation mode.
    """
    if not in_place:
        # Projections are in the memo and so are shared, not copied, until they are swapped.
        model = copy.deepcopy(model, {id(projection): projection for projection in _projections(model).values()})
    own = model.dtype
    if precision == "auto" and own not in (torch.float32, torch.bfloat16):
        return model.eval()
    chosen = str(own).removeprefix("torch.") if precision == "auto" else precision
    frozen = {name: module for name, module in model.named_modules() if isinstance(module, FrozenProjection)}
    again = {name: module for name, module in frozen.items() if precision not in ("auto", module.precision)}
    for name, projection in {**_projections(model), **again}.items():
        _replace(model, name, FrozenProjection(projection, cast(Precision, chosen)))
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            _replace(model, name, nn.Parameter(parameter.detach().float(), requires_grad=parameter.requires_grad))
    if in_place:
        _return_freed_memory()
    return model.eval()


def lay_out(model: nn.Module, num_rows: int, compiled: bool) -> bool:
    """Bring the projections of a frozen model into the layout that is fastest for so many inputs at once.

    Returns: whether a weight had to be moved.
    """
    moved = False
    for module in model.modules():
        if isinstance(module, FrozenProjection):
            work, was_packed = num_rows * module.in_features * module.out_features, module.is_packed
            few = work <= _SMALL_WORK or (compiled and num_rows <= ROWS_LIMIT)
            module.lay_out("rows" if few else "packed")
            moved |= module.is_packed != was_packed
    return moved


def is_exact(model: nn.Module) -> bool:
    """Whether the weights are what they were before the model was frozen."""
    return all(module.is_exact for module in model.modules() if isinstance(module, FrozenProjection))


def check_precision(precision: str) -> None:
    """Raise ValueError unless it is one we know."""
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}: choose one of {', '.join(get_args(Precision))}")


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN can pack and multiply this weight on this machine."""
    return weight.device.type == "cpu" and weight.dtype != torch.int8 and _is_fast(weight.dtype, weight.device)


def _is_fast(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products in this dtype have a kernel of their own on this machine."""
    if device.type != "cpu":
        return True
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


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


# A name of our own for oneDNN's product: Inductor takes the one it knows only for weights that are constants of the
# graph, and ours are arguments, so that one graph serves all blocks.
_library = torch.library.Library("imagegpt", "FRAGMENT")
_library.define("packed_linear(Tensor x, Tensor weight) -> Tensor", tags=(torch.Tag.flexible_layout,))


def _packed_linear(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


for _key in ("CPU", "MkldnnCPU"):
    _library.impl("packed_linear", _packed_linear, _key)


@torch.library.register_fake("imagegpt::packed_linear")
def _packed_linear_shape(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])
