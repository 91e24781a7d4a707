"""Attention over whole sequences and its gradient: torch operators with kernels in `cpp/attention.cpp`.

Importing this module registers the operators. `load`, or the first call, compiles and loads the kernels.

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

_LIBRARY = Library(name="attention")
_loaded: list[ctypes.CDLL] = []  # the library, once loaded
_HEAD_WIDTH_MULTIPLE = 16
_OUT_OF_MEMORY = 1


class HeadsStruct(Structure):
    """A tensor (B, H, positions, D): its address, and the strides of all axes except D."""

    _fields_ = (
        ("data", c_void_p), ("image_stride", c_int64), ("head_stride", c_int64), ("position_stride", c_int64)
    )  # fmt: skip


class AttentionStruct(Structure):
    """The arguments of a kernel; the last four tensors are for the backward pass only."""

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
        ("logsumexp", c_void_p),
        ("out_grad", HeadsStruct),
        ("query_grad", HeadsStruct),
        ("key_grad", HeadsStruct),
        ("value_grad", HeadsStruct),
    )


def is_supported(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether there is a kernel for these tensors that is not slower than torch's; works before `load`."""
    if any(tensor.device.type != "cpu" or tensor.dtype != query.dtype for tensor in (query, key, value)):
        return False
    if query.shape[-1] % _HEAD_WIDTH_MULTIPLE or 0 in query.shape or 0 in key.shape:
        return False
    # With AMX, torch's own attention in bfloat16 does more multiplications per cycle; the two were not compared.
    return _has_kernel(query.dtype) and not (query.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported())


def attention(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b h s d"],
    value: Float[Tensor, "b h s d"],
    scale: float,
    is_causal: bool,
) -> Float[Tensor, "b n h d"]:
    """Scaled dot-product attention, softmax(scale * query @ key^T) @ value, with an optional causal mask.

    In bfloat16 the attention weights are rounded before they are multiplied by the values; all sums are in float32.
    """
    return _forward(query, key, value, scale, is_causal)[0]


def is_loaded() -> bool:
    """Whether the kernels are loaded."""
    return bool(_loaded)


def load() -> ctypes.CDLL:
    """Return the kernels, loaded once; compile them first if they are not cached.

    Raises: OSError or RuntimeError if they cannot be compiled or loaded.
    """
    if not _loaded:  # two threads may get here at once: both load the same library
        _loaded.append(ctypes.CDLL(str(find_or_build(_LIBRARY))))
    return _loaded[0]


@torch.library.custom_op("imagegpt::attention", mutates_args=(), device_types="cpu")
def _forward(query: Tensor, key: Tensor, value: Tensor, scale: float, is_causal: bool) -> tuple[Tensor, Tensor]:
    """Return the output (B, N, H, D), and the logsumexp of each query's scores (B, H, N)."""
    out, logsumexp = _empty_results(query, key, value, scale, is_causal)
    tensors = {"query": query, "key": key, "value": value, "out": out.transpose(1, 2)}
    _run("imagegpt_attention", tensors, logsumexp, scale, is_causal)
    return out, logsumexp


@_forward.register_fake
def _empty_results(query: Tensor, key: Tensor, value: Tensor, scale: float, is_causal: bool) -> tuple[Tensor, Tensor]:
    batch, heads, queries, width = query.shape
    return query.new_empty(batch, queries, heads, width), query.new_empty(batch, heads, queries, dtype=torch.float32)


@torch.library.custom_op("imagegpt::attention_backward", mutates_args=(), device_types="cpu")
def _gradients(
    out_grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    scale: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value."""
    grads = _empty_gradients(out_grad, query, key, value)
    tensors = {
        "query": query,
        "key": key,
        "value": value,
        "out": out.transpose(1, 2),
        "out_grad": out_grad.transpose(1, 2),
    }
    tensors |= dict(zip(("query_grad", "key_grad", "value_grad"), grads, strict=True))
    _run("imagegpt_attention_backward", tensors, logsumexp, scale, is_causal)
    return grads


@_gradients.register_fake
def _empty_gradients(
    out_grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    query_grad, key_grad, value_grad = (  # (B, N, H, D) in memory, as the projections need them
        torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        for x in (query, key, value)
    )
    return query_grad, key_grad, value_grad


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale, ctx.is_causal = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, out_grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, out, logsumexp = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True: the backward kernel is not differentiable
        grads = _differentiable_gradients(out_grad.transpose(1, 2), query, key, value, ctx.scale, ctx.is_causal)
    else:
        grads = _gradients(out_grad, query, key, value, out, logsumexp, ctx.scale, ctx.is_causal)
    return *grads, None, None


_forward.register_autograd(_backward, setup_context=_setup_context)


def _differentiable_gradients(
    out_grad: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float, is_causal: bool
) -> list[Tensor | None]:
    """As `_gradients`, but in torch, which stores the whole attention matrix."""
    inputs = (query, key, value)
    differentiated = [x for x in inputs if x.requires_grad]
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        out = functional.scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale)
        grads = iter(torch.autograd.grad(out, differentiated, out_grad, create_graph=True))
    return [next(grads) if x.requires_grad else None for x in inputs]


def _run(function: str, tensors: dict[str, Tensor], logsumexp: Tensor, scale: float, is_causal: bool) -> None:
    """Call a kernel with tensors (B, H, positions, D), named as in `AttentionStruct`; outputs are contiguous."""
    images, heads, queries, width = tensors["query"].shape
    keys = tensors["key"].shape[2]
    _check(tensors, logsumexp, is_causal)
    tensors = {name: _contiguous_heads(tensor) for name, tensor in tensors.items()}
    logsumexp = logsumexp.contiguous()
    is_bfloat16 = tensors["query"].dtype == torch.bfloat16
    sizes = (images, heads, queries, keys, width, torch.get_num_threads(), scale, is_causal, is_bfloat16)
    structs = {name: HeadsStruct(tensor.data_ptr(), *tensor.stride()[:3]) for name, tensor in tensors.items()}
    _call(function, AttentionStruct(*sizes, logsumexp=logsumexp.data_ptr(), **structs))


def _call(function: str, call: AttentionStruct) -> None:
    status = load()[function](ctypes.byref(call))
    if status == _OUT_OF_MEMORY:
        raise MemoryError(f"not enough memory for attention of {call.queries} queries to {call.keys} keys")
    if status:
        raise RuntimeError("the C++ compiler does not support bfloat16: install a newer one, or use float32")


def _check(tensors: dict[str, Tensor], logsumexp: Tensor, is_causal: bool) -> None:
    """Check that a kernel reads and writes inside the tensors only."""
    dtype, (images, heads, queries, width) = tensors["query"].dtype, tensors["query"].shape
    keys = tensors["key"].shape[2]
    expected: dict[str, tuple[Tensor, torch.dtype, tuple[int, ...]]] = {
        name: (tensor, dtype, (images, heads, keys if name.startswith(("key", "value")) else queries, width))
        for name, tensor in tensors.items()
    }
    expected["logsumexp"] = (logsumexp, torch.float32, (images, heads, queries))
    for name, (tensor, expected_dtype, shape) in expected.items():
        if tensor.dtype != expected_dtype or tensor.shape != shape:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} in {tensor.dtype}, but attention of these queries and keys needs "
                f"{shape} in {expected_dtype} (images, heads, positions, width)"
            )
    if not _has_kernel(dtype):
        raise ValueError(f"there is no attention kernel for {dtype} on this CPU: convert to float32")
    if width % _HEAD_WIDTH_MULTIPLE:
        raise ValueError(f"the head width is {width}: attention kernels need a multiple of {_HEAD_WIDTH_MULTIPLE}")
    if keys < (queries if is_causal else 1):
        raise ValueError(f"{queries} queries have {keys} keys: attention needs at least 1, or 1 per query if causal")


def _contiguous_heads(x: Tensor) -> Tensor:
    """Make the elements of a head contiguous, and pairs of them aligned."""
    is_even = all(stride % 2 == 0 for stride in x.stride()[:-1]) and x.storage_offset() % 2 == 0
    return x if x.stride(-1) == 1 and is_even else x.contiguous()


def _has_kernel(dtype: torch.dtype) -> bool:
    """Whether there are kernels for a dtype. bfloat16 needs AVX-512 BF16."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported())
