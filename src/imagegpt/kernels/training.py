"""Attention of all positions at once, with a gradient, and norm and activation; `load` must have been called.

Axes: B images, H heads, N queries, S keys, D head width, C channels.
"""

import threading
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from imagegpt.kernels.building import Library, find_or_build

_LIBRARY = Library(name="training", uses_torch=True)
_lock = threading.Lock()
_loaded: list[bool] = []  # one entry once torch knows the operators, which is for good
_WIDTH_IS_MULTIPLE_OF = 16


def can_attend(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether there is a kernel for such tensors, and none of torch's that should be faster; needs no `load`."""
    given = (query, key, value)
    if any(tensor.device.type != "cpu" or tensor.dtype != query.dtype for tensor in given):
        return False
    if query.shape[-1] % _WIDTH_IS_MULTIPLE_OF or 0 in query.shape or 0 in key.shape:
        return False
    # With AMX torch's own attention in bfloat16 has more products a cycle; the two were not compared.
    return _is_known(query.dtype) and not (query.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported())


def attention(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b h s d"],
    value: Float[Tensor, "b h s d"],
    scale: float,
    is_causal: bool,
) -> Float[Tensor, "b n h d"]:
    """Values mixed with the softmax of scale * query @ key^T; if causal, of the keys up to a query's own position.

    In bfloat16 the weights are rounded before they meet the values, and all sums are in float32.
    """
    given = (_without_gaps(tensor) for tensor in (query, key, value))
    return torch.ops.imagegpt.attention(*given, scale, is_causal)[0]


def can_normalise(x: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for the norm of such tensors, rounded to a dtype; needs no `load`."""
    is_known = all(
        tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous()
        for tensor in (x, weight)
    )
    return is_known and x.numel() > 0 and x.shape[-1] % _WIDTH_IS_MULTIPLE_OF == 0 and _is_known(dtype)


def norm(
    x: Float32[Tensor, "*lead c"], weight: Float32[Tensor, " c"], eps: float, dtype: torch.dtype
) -> Float[Tensor, "*lead c"]:
    """`x * rsqrt(mean(x^2) + eps) * weight`, rounded to a dtype; without a gradient."""
    out = torch.empty_like(x, dtype=dtype)  # not a view, which autograd would not let anybody change in place
    torch.ops.imagegpt.norm(x.flatten(0, -2), weight, eps, out.flatten(0, -2))
    return out


def norm_backward(
    grad: Float[Tensor, "*lead c"], x: Float32[Tensor, "*lead c"], weight: Float32[Tensor, " c"], eps: float
) -> tuple[Float32[Tensor, "*lead c"], Float32[Tensor, " c"]]:
    """The gradients of x and weight."""
    rows = x.flatten(0, -2)
    for_x, for_weight = torch.ops.imagegpt.norm_backward(grad.reshape(rows.shape).contiguous(), rows, weight, eps)
    return for_x.view(x.shape), for_weight


def can_activate(x: Tensor) -> bool:
    """Whether there is a kernel for the activation of such a tensor; needs no `load`."""
    return x.device.type == "cpu" and x.is_contiguous() and x.numel() > 0 and _is_known(x.dtype)


def quick_gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`x * sigmoid(1.702 x)`, without a gradient."""
    return torch.ops.imagegpt.quick_gelu(x)


def quick_gelu_backward(grad: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The gradient of x."""
    return torch.ops.imagegpt.quick_gelu_backward(grad.contiguous(), x)


def is_loaded() -> bool:
    """Whether the kernels can be called."""
    return bool(_loaded)


def load() -> None:
    """See that the kernels can be called, in this process from now on; they are compiled if need be.

    Raises: OSError or RuntimeError if they cannot be compiled or loaded.
    """
    with _lock:
        if not _loaded:
            torch.ops.load_library(find_or_build(_LIBRARY))
            _register()
            _loaded.append(True)


def _register() -> None:
    """Tell torch the shapes and the gradient of `attention`."""

    @torch.library.register_fake("imagegpt::attention")
    def _(query: Tensor, key: Tensor, value: Tensor, scale: float, is_causal: bool) -> tuple[Tensor, Tensor]:
        batch, heads, queries, width = query.shape
        out = query.new_empty(batch, queries, heads, width)
        return out, query.new_empty(batch, heads, queries, dtype=torch.float32)

    @torch.library.register_fake("imagegpt::attention_backward")
    def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        like_query, like_key, like_value = (
            torch.empty_like(tensor.transpose(1, 2), memory_format=torch.contiguous_format)
            for tensor in (query, key, value)
        )
        return like_query, like_key, like_value

    torch.library.register_autograd("imagegpt::attention", _backward, setup_context=_keep)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale, ctx.is_causal = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, out, log_sums = ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradients will be differentiated: the kernel has no gradient of its own
        return *_differentiable_gradients(grad.transpose(1, 2), query, key, value, ctx.scale, ctx.is_causal), None, None
    grads = torch.ops.imagegpt.attention_backward(
        grad.contiguous().transpose(1, 2), query, key, value, out.transpose(1, 2), log_sums, ctx.scale, ctx.is_causal
    )
    return *(grad.transpose(1, 2) for grad in grads), None, None


def _differentiable_gradients(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float, is_causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What `attention_backward` computes, in torch's operations: it keeps the weights of all queries and keys."""
    wide = torch.promote_types(query.dtype, torch.float32)
    wide_grad, wide_query, wide_key, wide_value = (tensor.to(wide) for tensor in (grad, query, key, value))
    scores = scale * wide_query @ wide_key.transpose(-1, -2)
    if is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    weights = scores.softmax(dim=-1)
    for_weights = wide_grad @ wide_value.transpose(-1, -2)
    for_scores = scale * weights * (for_weights - (weights * for_weights).sum(dim=-1, keepdim=True))
    for_query, for_key = for_scores @ wide_key, for_scores.transpose(-1, -2) @ wide_query
    for_value = weights.transpose(-1, -2) @ wide_grad
    return for_query.to(query.dtype), for_key.to(key.dtype), for_value.to(value.dtype)


def _without_gaps(x: Tensor) -> Tensor:
    """Numbers of a head side by side, and pairs of them where a word begins."""
    is_even = all(stride % 2 == 0 for stride in x.stride()[:-1]) and x.storage_offset() % 2 == 0
    return x if x.stride(-1) == 1 and is_even else x.contiguous()


def _is_known(dtype: torch.dtype) -> bool:
    """Whether there are kernels for a type of numbers: bfloat16 is for processors that multiply pairs of it."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported())
