"""The layers' arithmetic for training, which keeps little for the backward pass.

Torch keeps what each operation was given. Here a norm and an activation keep their input alone, and a projection that
follows them keeps nothing of its own: what it was given is computed again from that, which takes one pass over the
numbers where the product multiplies each some hundreds of times. Nor are the weights that autocast rounded kept until
the backward pass.

Norm and activation are our kernels' in models that use those. Wherever torch does more than a plain backward pass
(compiling, `torch.func`, forward-mode differentiation) the layers use torch's own operations.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad
from torch.nn import functional

from imagegpt.kernels import building
from imagegpt.kernels import training as kernels

_SIGMOID_FACTOR = 1.702  # of the original code's activation
_SOURCE = "_imagegpt_source"  # on a tensor: how it was made, of what, and the versions of all then


def is_plain_training(*tensors: Tensor | None) -> bool:
    """Whether a backward pass may follow, of the kind that the functions of this module know."""
    given = [tensor for tensor in tensors if tensor is not None]
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given) and _are_plain(*given)


def norm(
    x: Tensor, weight: Tensor, eps: float, *, dtype: torch.dtype | None = None, with_kernels: bool = False
) -> Tensor:
    """`x * rsqrt(mean(x^2) + eps) * weight` over the last axis, in float32 or wider.

    The result has the dtype given, or the input's. With kernels it is ours, if there is one and no gradient is wanted.
    """
    dtype = dtype or x.dtype
    if with_kernels and _can_call_kernels(x, weight) and kernels.can_normalise(x, weight, dtype):
        return kernels.norm(x, weight, eps, dtype)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * scale * weight).to(dtype)


def quick_gelu(x: Tensor, *, with_kernels: bool = False) -> Tensor:
    """`x * sigmoid(1.702 x)`, as silu(1.702 x) / 1.702: that takes one new tensor where the plain product takes three.

    At iGPT-S's size on a CPU it took 12 ms instead of 31, of 280 for a whole block. With kernels as `norm`.
    """
    if with_kernels and _can_call_kernels(x) and kernels.can_activate(x):
        return kernels.quick_gelu(x)
    scaled = x * _SIGMOID_FACTOR
    activated = functional.silu(scaled, inplace=not scaled.requires_grad)
    return activated.mul_(1 / _SIGMOID_FACTOR)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight + bias` for x (N, in) and weight (in, out)."""
    return x @ weight if bias is None else torch.addmm(bias, x, weight)


def trained_norm(x: Tensor, weight: Tensor, eps: float, *, rounds: bool, with_kernels: bool) -> Tensor:
    """`norm`, which keeps x; in autocast's dtype where that is on, if it rounds."""
    dtype = _dtype_of_products(x) if rounds else x.dtype
    function = functools.partial(norm, eps=eps, dtype=dtype, with_kernels=with_kernels)
    return _made_by(function, (x, weight), _Norm.apply(x, weight, eps, dtype, with_kernels))


def trained_quick_gelu(x: Tensor, *, with_kernels: bool) -> Tensor:
    """`quick_gelu`, which keeps x."""
    return _made_by(functools.partial(quick_gelu, with_kernels=with_kernels), (x,), _QuickGELU.apply(x, with_kernels))


def trained_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`product` over the last axis of x (..., in), in autocast's dtype where that is on.

    Keeps the weight and x; where x is what `trained_norm` or `trained_quick_gelu` gave, what that was made of.
    """
    source, made_of, versions = getattr(x, _SOURCE, (None, (), None))
    if source and versions != _versions(x, *made_of):  # changed in place since, by a hook perhaps
        source, made_of = None, ()
    return cast(Tensor, _Product.apply(_dtype_of_products(x), x, weight, bias, source, *made_of))


def _dtype_of_products(x: Tensor) -> torch.dtype:
    kind = x.device.type
    is_on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    rounds = is_on and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if rounds else x.dtype


def _made_by(function: Callable[..., Tensor], made_of: tuple[Tensor, ...], result: Any) -> Tensor:
    """Note on a tensor how to make it again."""
    setattr(result, _SOURCE, (function, made_of, _versions(result, *made_of)))
    return result


def _versions(*tensors: Tensor) -> list[int]:
    return [tensor._version for tensor in tensors]


def _are_plain(*tensors: Tensor) -> bool:
    """Whether nobody looks at what is done with them, and they are not sharded, quantised or the like."""
    return (
        not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and all(type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)
    )


def _can_call_kernels(*tensors: Tensor) -> bool:
    """Whether kernels without a gradient will do."""
    return building.is_loaded("training") and not torch.is_grad_enabled() and _are_plain(*tensors)


# What these keep are their inputs alone, so that a gradient can be differentiated again.


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, with_kernels: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.with_kernels = eps, with_kernels
        return norm(x, weight, eps, dtype=dtype, with_kernels=with_kernels)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight = ctx.saved_tensors
        may_call = ctx.with_kernels and _can_call_kernels(x, weight)
        if may_call and kernels.can_normalise(x, weight, grads[0].dtype):
            return *kernels.norm_backward(grads[0], x, weight, ctx.eps), None, None, None
        wide, grad = (tensor.to(torch.promote_types(x.dtype, torch.float32)) for tensor in (x, grads[0]))
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + ctx.eps)
        normed = wide * scale
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype)
        grad = grad * weight
        along = (grad * normed).mean(dim=-1, keepdim=True)  # the norm does not change when x grows
        return (torch.addcmul(grad, normed, along, value=-1) * scale).to(x.dtype), grad_weight, None, None, None


class _QuickGELU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, with_kernels: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.with_kernels = with_kernels
        return quick_gelu(x, with_kernels=with_kernels)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        if ctx.with_kernels and _can_call_kernels(x) and kernels.can_activate(x):
            return kernels.quick_gelu_backward(grads[0], x), None
        scaled = x * _SIGMOID_FACTOR
        if not torch.is_grad_enabled():
            return torch.ops.aten.silu_backward(grads[0], scaled), None
        share = torch.sigmoid(scaled)  # silu_backward has no gradient
        return grads[0] * share * (1 + scaled * (1 - share)), None


class _Product(Function):
    @staticmethod
    def forward(
        ctx: Any,
        dtype: torch.dtype,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        source: Callable[..., Tensor] | None,
        *made_of: Tensor,
    ) -> Tensor:
        ctx.dtype, ctx.source, ctx.num_others = dtype, source, len(made_of)
        ctx.shape, ctx.in_dtype = x.shape, x.dtype
        ctx.save_for_backward(weight, bias, *(made_of if source else (x,)))
        # The result is given its place before what lives for a moment, behind which it would leave a hole.
        # It is no view, which autograd would not let anybody change in place.
        out = x.new_empty(*x.shape[:-1], weight.shape[1], dtype=dtype)
        rows, to = x.flatten(0, -2), out.flatten(0, -2)
        if bias is None:
            torch.mm(rows.to(dtype), weight.to(dtype), out=to)
        else:
            torch.addmm(bias.to(dtype), rows.to(dtype), weight.to(dtype), out=to)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        weight, bias, *kept = ctx.saved_tensors
        _, wants_x, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        grad = grads[0].flatten(0, -2)
        grad_x = grad_weight = grad_bias = None
        if wants_x:
            grad_x = (grad @ weight.to(ctx.dtype).T).to(ctx.in_dtype).view(ctx.shape)
        if wants_weight:
            x = ctx.source(*kept) if ctx.source else kept[0]
            grad_weight = (x.flatten(0, -2).to(ctx.dtype).T @ grad).to(weight.dtype)
        if wants_bias:
            grad_bias = grad.sum(0, dtype=torch.promote_types(ctx.dtype, torch.float32)).to(bias.dtype)
        return None, grad_x, grad_weight, grad_bias, None, *[None] * ctx.num_others
