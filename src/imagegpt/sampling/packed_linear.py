"""A model made ready for sampling: its `Projection` modules swapped for packed ones, everything else in float32.

Two layouts. "rows": a contiguous row for each output, which torch's products take. "tiles": the order in which the C++
step reads weights, see `kernels/cpp/linear.h`.
"""

import contextlib
import copy
import ctypes
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagegpt.kernels.step import TILE, Kind
from imagegpt.model.layers import Projection
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.sampling.weight_formats import WeightFormat

Layout = Literal["rows", "tiles"]


class PackedLinear(nn.Module):
    """An affine map for inference only, in place of a `Projection`.

    It is saved and loaded by the names and in the layout of the `Projection`. Its parameters are those of the
    projection, and take no gradient.

    Args:
        projection: the one to stand in for, packed already or not; its bias is shared, its weight copied.
        weight_format: how the weight is stored.
        layout: in which order.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    scale: Tensor | None

    def __init__(self, projection: "Projection | PackedLinear", weight_format: WeightFormat, layout: Layout) -> None:
        super().__init__()
        self.in_features, self.out_features = projection.in_features, projection.out_features
        self.format, self.layout = weight_format, layout
        given = projection.dense_weight() if isinstance(projection, PackedLinear) else projection.weight.detach()
        was_exact = not isinstance(projection, PackedLinear) or projection.is_exact
        self.is_exact = was_exact and given.dtype == weight_format.dtype
        self._pack(given)
        bias = projection.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().float(), requires_grad=False)

    def forward(self, x: Float[Tensor, "*lead i"]) -> Float[Tensor, "*lead o"]:
        """Map (..., in) to (..., out), in the dtype of `x`."""
        out = self.format.matmul(x.reshape(-1, self.in_features), self._rows())
        if self.scale is not None:
            out = out * self.scale
        if self.bias is not None:
            out = out + self.bias
        return out.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def dense_weight(self) -> Float[Tensor, "i o"]:
        """The weight as a `Projection` stores it, (in, out); what it stands for in float32 if it has factors."""
        return self.format.unpack(self._rows(), self.scale).t().contiguous()

    def extra_repr(self) -> str:
        """Sizes, precision and layout, for `print(model)`."""
        return f"{self.in_features}, {self.out_features}, {self.format.name}, {self.layout}"

    def _pack(self, weight: Float[Tensor, "i o"]) -> None:
        rows, scale = self.format.pack(weight.t())
        self.weight = nn.Parameter(tiled(rows) if self.layout == "tiles" else rows, requires_grad=False)
        self.register_buffer("scale", scale, persistent=False)

    def _rows(self) -> Tensor:
        weight = self.weight.detach()
        return weight if self.layout == "rows" else untiled(weight, self.out_features, self.in_features)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Called by `to()`, `half()` and the like: another device is fine, another dtype would leave what was packed.
        probe = fn(torch.empty(0, device=self.weight.device))
        if probe.dtype != torch.float32:
            raise TypeError(
                f"a model prepared for sampling in {self.format.name} cannot become {probe.dtype}: load it again, or "
                "choose its precision when it is prepared"
            )
        if probe.device.type != "cpu" and self.layout == "tiles":
            self.weight, self.layout = nn.Parameter(self._rows(), requires_grad=False), "rows"
        for tensor in (*self._parameters.values(), *self._buffers.values()):
            if tensor is not None:
                tensor.data = tensor.data.to(probe.device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.dense_weight()
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride] - called with all of them in order
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, *lists: Any
    ) -> None:
        missing, unexpected, errors = lists
        for name, shape in (("weight", (self.in_features, self.out_features)), ("bias", (self.out_features,))):
            given = state_dict.get(prefix + name)
            if name == "bias" and self.bias is None:
                if given is not None and strict:
                    unexpected.append(prefix + name)
            elif given is None:
                missing.append(prefix + name)
            elif tuple(given.shape) != shape:
                errors.append(f"{prefix}{name} has the shape {tuple(given.shape)}: it must be {shape}")
            elif name == "weight":
                self._pack(given.to(self.weight.device))
            else:
                cast(Tensor, self.bias).data.copy_(given)


def tiled(rows: Float[Tensor, "o i"]) -> Tensor:
    """A stored weight in the order in which the C++ step reads it, padded with zeros.

    Returns: (tiles, I, TILE) of float32; (tiles, I / 2, TILE, 2) of narrower types, two inputs of an output together.
    """
    num_outputs, width = rows.shape
    num_tiles = -(-num_outputs // TILE)
    step = 1 if rows.dtype == torch.float32 else 2
    padded = rows.new_zeros(num_tiles * TILE, -(-width // step) * step)
    padded[:num_outputs, :width] = rows
    if step == 1:
        return padded.view(num_tiles, TILE, -1).transpose(1, 2).contiguous()
    return padded.view(num_tiles, TILE, -1, 2).transpose(1, 2).contiguous()


def untiled(weight: Tensor, num_outputs: int, width: int) -> Float[Tensor, "o i"]:
    """The weight that was tiled."""
    return weight.transpose(1, 2).reshape(weight.shape[0] * TILE, -1)[:num_outputs, :width].contiguous()


def prepare(
    model: ImageGPTForCausalImageModeling, weight_format: WeightFormat | None, layout: Layout, *, in_place: bool
) -> ImageGPTForCausalImageModeling:
    """A model with its projections packed and everything else in float32.

    Args:
        model: in any dtype.
        weight_format: of the projections; None leaves all as it is.
        layout: of the packed weights.
        in_place: swap them in the model itself, one after the other, so that there are never two sets of weights;
            otherwise the model given stays as it is, and what becomes of it later does not matter here.
    Returns: a model in evaluation mode.
    """
    if weight_format is None:
        return (model if in_place else copy.deepcopy(model)).eval()
    if not in_place:  # projections are in the memo and so are shared, not copied, until they are swapped
        model = copy.deepcopy(model, {id(one): one for one in model.modules() if isinstance(one, Projection)})
    for name, module in list(model.named_modules()):
        if isinstance(module, Projection) or (
            isinstance(module, PackedLinear) and _differs(module, weight_format, layout)
        ):
            _replace(model, name, PackedLinear(module, weight_format, layout))
    for name, parameter in list(model.named_parameters()):
        if parameter.dtype in (torch.float16, torch.bfloat16, torch.float64) and not _is_packed(model, name):
            _replace(model, name, nn.Parameter(parameter.detach().float(), requires_grad=parameter.requires_grad))
    if in_place:
        _return_freed_memory()
    return model.eval()


def is_exact(model: nn.Module) -> bool:
    """Whether the weights are what they were before the model was prepared."""
    return all(module.is_exact for module in model.modules() if isinstance(module, PackedLinear))


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all weights, as they are stored."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def prepared_bytes(model: ImageGPTForCausalImageModeling, weight_format: WeightFormat | None, layout: Layout) -> int:
    """What `stored_bytes` will be once a model is prepared: a copy without numbers (device "meta") is, and tells."""
    if weight_format is None:
        return stored_bytes(model)
    empty = {id(one): nn.Parameter(one.detach().to("meta"), requires_grad=False) for one in model.parameters()}
    return stored_bytes(prepare(copy.deepcopy(model, empty), weight_format, layout, in_place=True))


def kind_of(linear: PackedLinear) -> Kind:
    """How the C++ step knows the stored weight."""
    assert linear.format.kind is not None
    return linear.format.kind


def _differs(module: PackedLinear, weight_format: WeightFormat, layout: Layout) -> bool:
    return module.format.name != weight_format.name or module.layout != layout


def _is_packed(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name.rpartition(".")[0]), PackedLinear)


def _return_freed_memory() -> None:
    """Give what was freed back to the system: glibc would keep 30 MB of iGPT-S for itself."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # where there is no glibc
        ctypes.CDLL(None).malloc_trim(0)


def _replace(model: nn.Module, name: str, part: nn.Module | nn.Parameter) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, part)
