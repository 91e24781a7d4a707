"""The layers' arithmetic for training, which keeps little for the backward pass.

Torch keeps what each operation was given. Here a norm and an activation keep their input alone, and a projection that
follows them keeps nothing of its own: what it was given is computed again from that, which takes one pass over the
numbers where the product multiplies each some hundreds of times. Nor are the weights that autocast rounded kept until
the backward pass.

Norm and activation are our kernels' in models that use those. Wherever torch does more than a plain backward pass
(compiling, `torch.func`, forward-mode differentiation) the layers use torch's own operations.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.nn import functional

from imagegpt.kernels import training as kernels
from imagegpt.model import tracing

_SIGMOID_FACTOR = 1.702  # of the original code's activation


def is_plain_training(*tensors: Tensor | None) -> bool:
    """Whether a backward pass may follow, of the kind that the functions of this module know."""
    given = [tensor for tensor in tensors if tensor is not None]
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given) and are_plain(*given)


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
    scaled = _without_overflow(x) * _SIGMOID_FACTOR
    activated = functional.silu(scaled, inplace=not scaled.requires_grad)
    return activated.mul_(1 / _SIGMOID_FACTOR).to(x.dtype)


def _without_overflow(x: Tensor) -> Tensor:
    """float16 as float32: 1.702 x is infinite in float16 from 38,497 on, and its gradient is not a number."""
    return x.float() if x.dtype == torch.float16 else x


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight + bias` for x (N, in) and weight (in, out)."""
    return x @ weight if bias is None else torch.addmm(bias, x, weight)


def trained_norm(x: Tensor, weight: Tensor, eps: float, *, rounds: bool, with_kernels: bool) -> Tensor:
    """`norm`, which keeps x; in autocast's dtype where that is on, if it rounds."""
    dtype = _dtype_of_products(x) if rounds else x.dtype
    return cast(Tensor, _Norm.apply(x, weight, eps, dtype, with_kernels))


def trained_quick_gelu(x: Tensor, *, with_kernels: bool) -> Tensor:
    """`quick_gelu`, which keeps x."""
    return cast(Tensor, _QuickGELU.apply(x, with_kernels))


def trained_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`product` over the last axis of x (..., in), in autocast's dtype where that is on.

    Keeps the weight and x; where x is what `trained_norm` or `trained_quick_gelu` gave, what that was made of.
    """
    remake, made_of = _origin_of(x)
    return cast(Tensor, _Product.apply(_dtype_of_products(x), x, weight, bias, remake, *made_of))


def _dtype_of_products(x: Tensor) -> torch.dtype:
    kind = x.device.type
    is_on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    rounds = is_on and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if rounds else x.dtype


class _Origin:
    """How a tensor was computed, kept by the node of autograd's graph that it came from (`Tensor.grad_fn`).

    The tensors it was computed from are referred to weakly: what lives until the backward pass is for
    `save_for_backward` to decide, and for the hooks (offloading, checkpointing) that it calls.

    Args:
        remake: computes `result` from `made_of`.
    """

    def __init__(self, remake: Callable[..., Tensor], made_of: tuple[Tensor, ...], result: Tensor) -> None:
        self.remake = remake
        self._made_of = [weakref.ref(tensor) for tensor in made_of]
        self._versions = _versions(result, *made_of)

    def tensors(self, result: Tensor) -> tuple[Tensor, ...]:
        """What `result` was computed from; nothing if any of it is gone, or was changed in place, by a hook perhaps."""
        made_of = [reference() for reference in self._made_of]
        alive = tuple(tensor for tensor in made_of if tensor is not None)
        return alive if len(alive) == len(made_of) and _versions(result, *alive) == self._versions else ()


def _origin_of(x: Tensor) -> tuple[Callable[..., Tensor] | None, tuple[Tensor, ...]]:
    """How to compute `x` again, and from what; None and nothing unless a norm or an activation of ours gave it."""
    origin = getattr(x.grad_fn, "origin", None)
    made_of = origin.tensors(x) if isinstance(origin, _Origin) else ()
    return (cast(_Origin, origin).remake, made_of) if made_of else (None, ())


def _versions(*tensors: Tensor) -> list[int]:
    return [tensor._version for tensor in tensors]


def are_plain(*tensors: Tensor) -> bool:
    """Whether nobody looks at what is done with them, and they are not sharded, quantised or the like."""
    return (
        not tracing.is_traced()
        and forward_ad._current_level < 0
        and all(tracing.is_plain(tensor) for tensor in tensors)
    )


def _can_call_kernels(*tensors: Tensor) -> bool:
    """Whether kernels without a gradient will do."""
    return kernels.is_loaded() and not torch.is_grad_enabled() and are_plain(*tensors)


# What these keep are their inputs alone, so that a gradient can be differentiated again.


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, with_kernels: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.with_kernels = eps, with_kernels
        remake = functools.partial(norm, eps=eps, dtype=dtype, with_kernels=with_kernels)
        out = remake(x, weight)
        ctx.origin = _Origin(remake, (x, weight), out)
        return out

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
        remake = functools.partial(quick_gelu, with_kernels=with_kernels)
        out = remake(x)
        ctx.origin = _Origin(remake, (x,), out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        if ctx.with_kernels and _can_call_kernels(x) and kernels.can_activate(x):
            return kernels.quick_gelu_backward(grads[0], x), None
        grad, scaled = _without_overflow(grads[0]), _without_overflow(x) * _SIGMOID_FACTOR
        if not torch.is_grad_enabled():
            return torch.ops.aten.silu_backward(grad, scaled).to(x.dtype), None
        share = torch.sigmoid(scaled)  # silu_backward has no gradient
        return (grad * share * (1 + scaled * (1 - share))).to(x.dtype), None


class _Product(Function):
    @staticmethod
    def forward(
        ctx: Any,
        dtype: torch.dtype,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        remake: Callable[..., Tensor] | None,
        *made_of: Tensor,
    ) -> Tensor:
        ctx.dtype, ctx.remake, ctx.num_others = dtype, remake, len(made_of)
        ctx.shape, ctx.in_dtype = x.shape, x.dtype
        ctx.save_for_backward(weight, bias, *(made_of if remake else (x,)))
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
            x = ctx.remake(*kept) if ctx.remake else kept[0]
            grad_weight = (x.flatten(0, -2).to(ctx.dtype).T @ grad).to(weight.dtype)
        if wants_bias:
            grad_bias = grad.sum(0, dtype=torch.promote_types(ctx.dtype, torch.float32)).to(bias.dtype)
        return None, grad_x, grad_weight, grad_bias, None, *[None] * ctx.num_others
