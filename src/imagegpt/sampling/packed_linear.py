"""Models prepared for sampling: `Projection` modules are replaced by `PackedLinear`, everything else is in float32.

There are two layouts of packed weights. "rows": a contiguous row for each output, for torch. "tiles": the order in
which the C++ step reads weights, see `kernels/cpp/linear.h`.
"""

import contextlib
import copy
import ctypes
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagegpt.kernels.step import TILE
from imagegpt.model.layers import Projection
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.sampling.weight_formats import WeightFormat

Layout = Literal["rows", "tiles"]


class PackedLinear(nn.Module):
    """An inference-only replacement for a `Projection`.

    Its state dict has the names and layout of the `Projection`. Its parameters require no gradient.

    Args:
        projection: the module to replace, packed already or not. Its bias is shared, its weight copied.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    scale: Tensor | None

    def __init__(self, projection: "Projection | PackedLinear", weight_format: WeightFormat, layout: Layout) -> None:
        super().__init__()
        self.in_features, self.out_features = projection.in_features, projection.out_features
        self.format, self.layout = weight_format, layout
        is_plain = isinstance(projection, Projection)
        weight = projection.weight.detach() if is_plain else projection.dense_weight()
        self.is_lossless = (is_plain or projection.is_lossless) and weight.dtype == weight_format.dtype
        self._pack(weight)
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
        """The weight as a `Projection` stores it, (in, out); in float32 if it has scales."""
        return self.format.unpack(self._rows(), self.scale).t().contiguous()

    def extra_repr(self) -> str:
        """Sizes, format and layout, for `print(model)`."""
        return f"{self.in_features}, {self.out_features}, {self.format.name}, {self.layout}"

    def _pack(self, weight: Float[Tensor, "i o"]) -> None:
        rows, scale = self.format.pack(weight.t())
        self.weight = nn.Parameter(tile_weight(rows) if self.layout == "tiles" else rows, requires_grad=False)
        self.register_buffer("scale", scale, persistent=False)

    def _rows(self) -> Tensor:
        weight = self.weight.detach()
        return weight if self.layout == "rows" else untile_weight(weight, self.out_features, self.in_features)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Called by `to()`, `half()` and similar: another device is fine, another dtype would break the packed weight.
        probe = fn(torch.empty(0, device=self.weight.device))
        if probe.dtype != torch.float32:
            raise TypeError(
                f"a model prepared for sampling in {self.format.name} cannot be converted to {probe.dtype}: load it "
                "again, or choose its precision when preparing it"
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

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride] - called with positional arguments
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, *lists: Any
    ) -> None:
        missing, unexpected, errors = lists
        for name, shape in (("weight", (self.in_features, self.out_features)), ("bias", (self.out_features,))):
            tensor = state_dict.get(prefix + name)
            if name == "bias" and self.bias is None:
                if tensor is not None and strict:
                    unexpected.append(prefix + name)
            elif tensor is None:
                missing.append(prefix + name)
            elif tuple(tensor.shape) != shape:
                errors.append(f"{prefix}{name} has the shape {tuple(tensor.shape)}: it must be {shape}")
            elif name == "weight":
                self._pack(tensor.to(self.weight.device))
            else:
                cast(Tensor, self.bias).data.copy_(tensor)


def tile_weight(rows: Float[Tensor, "o i"]) -> Tensor:
    """Reorder a stored weight for the C++ step, padded with zeros.

    Returns: (tiles, I, TILE) for float32; (tiles, I / 2, TILE, 2) for narrower types, with two inputs of each output
        side by side.
    """
    num_outputs, width = rows.shape
    num_tiles = -(-num_outputs // TILE)
    step = 1 if rows.dtype == torch.float32 else 2
    padded = rows.new_zeros(num_tiles * TILE, -(-width // step) * step)
    padded[:num_outputs, :width] = rows
    if step == 1:
        return padded.view(num_tiles, TILE, -1).transpose(1, 2).contiguous()
    return padded.view(num_tiles, TILE, -1, 2).transpose(1, 2).contiguous()


def untile_weight(weight: Tensor, num_outputs: int, width: int) -> Float[Tensor, "o i"]:
    """Undo `tile_weight`."""
    return weight.transpose(1, 2).reshape(weight.shape[0] * TILE, -1)[:num_outputs, :width].contiguous()


def prepare_model(
    model: ImageGPTForCausalImageModeling, weight_format: WeightFormat | None, layout: Layout, *, in_place: bool
) -> ImageGPTForCausalImageModeling:
    """Pack the projections of a model and convert everything else to float32.

    Args:
        model: in any dtype.
        weight_format: of the projections; None keeps all weights unchanged.
        in_place: replace the projections of the model itself, one by one, so that there are never two sets of weights
            in memory. Otherwise the model is copied, and later changes to it have no effect on the copy.
    Returns: a model in evaluation mode.
    """
    if weight_format is None:
        return (model if in_place else copy.deepcopy(model)).eval()
    if not in_place:  # with projections in the memo, the copy shares them until they are replaced
        model = copy.deepcopy(model, {id(one): one for one in model.modules() if isinstance(one, Projection)})
    wanted = weight_format.name, layout
    for name, module in list(model.named_modules()):
        is_packed = isinstance(module, PackedLinear) and (module.format.name, module.layout) == wanted
        if isinstance(module, Projection | PackedLinear) and not is_packed:
            model.set_submodule(name, PackedLinear(module, weight_format, layout))
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            is_float = parameter.dtype in (torch.float16, torch.bfloat16, torch.float64)
            if is_float and not isinstance(module, PackedLinear):
                setattr(module, name, nn.Parameter(parameter.detach().float(), requires_grad=parameter.requires_grad))
    if in_place:  # return freed memory to the system: glibc would hold on to 30 MB for iGPT-S
        with contextlib.suppress(AttributeError, OSError, TypeError):  # not glibc
            ctypes.CDLL(None).malloc_trim(0)
    return model.eval()


def is_lossless(model: nn.Module) -> bool:
    """Whether preparing the model rounded none of its weights."""
    return all(module.is_lossless for module in model.modules() if isinstance(module, PackedLinear))


def stored_bytes(model: nn.Module) -> int:
    """Size of all stored weights."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def prepared_bytes(model: ImageGPTForCausalImageModeling, weight_format: WeightFormat | None, layout: Layout) -> int:
    """The `stored_bytes` of the model once prepared, computed on a copy on the meta device."""
    if weight_format is None:
        return stored_bytes(model)
    empty = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in model.parameters()}
    return stored_bytes(prepare_model(copy.deepcopy(model, empty), weight_format, layout, in_place=True))
