"""Attention of all positions at once, with a gradient: operators of torch whose kernels are a library in C++.

The operators are known to torch from import on; the library is compiled and loaded by `load`, or by the first call.

Axes: B images, H heads, N queries, S keys, D head width.
"""

import ctypes
from ctypes import Structure, c_bool, c_float, c_int64, c_void_p
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from imagegpt.kernels.compiler import Library, find_or_build

_LIBRARY = Library(name="training")
_loaded: list[ctypes.CDLL] = []  # the library, once it is there
_HEAD_WIDTH_MULTIPLE = 16
_NO_MEMORY = 1


class HeadsStruct(Structure):
    """A tensor (B, H, positions, D): its address, and the strides of all axes but D."""

    _fields_ = (("first", c_void_p), ("image", c_int64), ("head", c_int64), ("position", c_int64))


class AttentionStruct(Structure):
    """A call of a kernel; the last four tensors are for gradients only."""

    _fields_ = (
        ("images", c_int64),
        ("heads", c_int64),
        ("queries", c_int64),
        ("keys", c_int64),
        ("width", c_int64),
        ("num_threads", c_int64),
        ("scale", c_float),
        ("is_causal", c_bool),
        ("is_bfloat16", c_bool),
        ("query", HeadsStruct),
        ("key", HeadsStruct),
        ("value", HeadsStruct),
        ("out", HeadsStruct),
        ("log_sums", c_void_p),
        ("grad", HeadsStruct),
        ("for_query", HeadsStruct),
        ("for_key", HeadsStruct),
        ("for_value", HeadsStruct),
    )


def can_attend(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether there is a kernel for such tensors, and none of torch's that should be faster; needs no `load`."""
    given = (query, key, value)
    if any(tensor.device.type != "cpu" or tensor.dtype != query.dtype for tensor in given):
        return False
    if query.shape[-1] % _HEAD_WIDTH_MULTIPLE or 0 in query.shape or 0 in key.shape:
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
    return _forward(query, key, value, scale, is_causal)[0]


def is_loaded() -> bool:
    """Whether the kernels are compiled and loaded."""
    return bool(_loaded)


def load() -> None:
    """Load the kernels into this process, and compile them if need be.

    Raises: OSError or RuntimeError if they cannot be compiled or loaded.
    """
    if not _loaded:  # two threads may both get here: they find the same file, and get the same library
        _loaded.append(ctypes.CDLL(str(find_or_build(_LIBRARY))))


@torch.library.custom_op("imagegpt::attention", mutates_args=(), device_types="cpu")
def _forward(query: Tensor, key: Tensor, value: Tensor, scale: float, is_causal: bool) -> tuple[Tensor, Tensor]:
    """What `attention` gives, and of each query the logarithm of the sum that divides its weights, (B, H, N)."""
    out, log_sums = _empty_results(query, key, value, scale, is_causal)
    tensors = {"query": query, "key": key, "value": value, "out": out.transpose(1, 2)}
    _run("imagegpt_attention", tensors, log_sums, scale, is_causal)
    return out, log_sums


@_forward.register_fake
def _empty_results(query: Tensor, key: Tensor, value: Tensor, scale: float, is_causal: bool) -> tuple[Tensor, Tensor]:
    batch, heads, queries, width = query.shape
    return query.new_empty(batch, queries, heads, width), query.new_empty(batch, heads, queries, dtype=torch.float32)


@torch.library.custom_op("imagegpt::attention_backward", mutates_args=(), device_types="cpu")
def _gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_sums: Tensor,
    scale: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value, from that of `out`."""
    grads = _empty_gradients(grad, query, key, value)
    tensors = {"query": query, "key": key, "value": value, "out": out.transpose(1, 2), "grad": grad.transpose(1, 2)}
    tensors |= dict(zip(("for_query", "for_key", "for_value"), grads, strict=True))
    _run("imagegpt_attention_backward", tensors, log_sums, scale, is_causal)
    return grads


@_gradients.register_fake
def _empty_gradients(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    for_query, for_key, for_value = (  # the heads of a position side by side, as the projections want them
        torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        for x in (query, key, value)
    )
    return for_query, for_key, for_value


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale, ctx.is_causal = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, out, log_sums = ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradients will be differentiated: the kernel has no gradient of its own
        grads = _differentiable_gradients(grad.transpose(1, 2), query, key, value, ctx.scale, ctx.is_causal)
    else:
        grads = _gradients(grad, query, key, value, out, log_sums, ctx.scale, ctx.is_causal)
    return *grads, None, None


_forward.register_autograd(_backward, setup_context=_keep)


def _differentiable_gradients(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float, is_causal: bool
) -> list[Tensor | None]:
    """What `_gradients` computes, by torch's own attention, which keeps the weights of all queries and keys."""
    given = (query, key, value)
    learnt = [x for x in given if x.requires_grad]
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        out = functional.scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale)
        grads = iter(torch.autograd.grad(out, learnt, grad, create_graph=True))
    return [next(grads) if x.requires_grad else None for x in given]


def _run(function: str, tensors: dict[str, Tensor], log_sums: Tensor, scale: float, is_causal: bool) -> None:
    """Call a kernel with tensors (B, H, positions, D), named as in `AttentionStruct`; results without gaps."""
    images, heads, queries, width = tensors["query"].shape
    keys = tensors["key"].shape[2]
    _check(tensors, log_sums, is_causal)
    tensors = {name: _without_gaps(tensor) for name, tensor in tensors.items()}
    log_sums = log_sums.contiguous()
    is_bfloat16 = tensors["query"].dtype == torch.bfloat16
    sizes = (images, heads, queries, keys, width, torch.get_num_threads(), scale, is_causal, is_bfloat16)
    structs = {name: HeadsStruct(tensor.data_ptr(), *tensor.stride()[:3]) for name, tensor in tensors.items()}
    _call(function, AttentionStruct(*sizes, log_sums=log_sums.data_ptr(), **structs))


def _call(function: str, call: AttentionStruct) -> None:
    if not _loaded:
        load()
    status = _loaded[0][function](ctypes.byref(call))
    if status == _NO_MEMORY:
        raise MemoryError(f"there is no memory for attention of {call.queries} queries to {call.keys} keys")
    if status:
        raise RuntimeError("the C++ compiler knows no products of bfloat16: install a newer one, or use float32")


def _check(tensors: dict[str, Tensor], log_sums: Tensor, is_causal: bool) -> None:
    """See that a kernel reads and writes inside the tensors only."""
    dtype, (images, heads, queries, width) = tensors["query"].dtype, tensors["query"].shape
    keys = tensors["key"].shape[2]
    needed: dict[str, tuple[Tensor, torch.dtype, tuple[int, ...]]] = {
        name: (tensor, dtype, (images, heads, keys if name.endswith(("key", "value")) else queries, width))
        for name, tensor in tensors.items()
    }
    needed["log_sums"] = (log_sums, torch.float32, (images, heads, queries))
    for name, (tensor, needed_dtype, shape) in needed.items():
        if tensor.dtype != needed_dtype or tensor.shape != shape:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} in {tensor.dtype}, but attention of these queries and keys needs "
                f"{shape} in {needed_dtype} (images, heads, positions, width)"
            )
    if not _is_known(dtype):
        raise ValueError(f"there is no attention kernel for {dtype} on this processor: convert to float32")
    if width % _HEAD_WIDTH_MULTIPLE:
        raise ValueError(f"heads are {width} wide: attention kernels take multiples of {_HEAD_WIDTH_MULTIPLE}")
    if keys < (queries if is_causal else 1):
        raise ValueError(f"{queries} queries have {keys} keys: attention needs one, and one for each query if causal")


def _without_gaps(x: Tensor) -> Tensor:
    """The numbers of a head side by side, and pairs of them aligned."""
    is_even = all(stride % 2 == 0 for stride in x.stride()[:-1]) and x.storage_offset() % 2 == 0
    return x if x.stride(-1) == 1 and is_even else x.contiguous()


def _is_known(dtype: torch.dtype) -> bool:
    """Whether there are kernels for a type of numbers: bfloat16 is for processors that multiply pairs of it."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported())
