"""Bindings for `cpp/step.cpp`, which computes a decoding step in one call.

The structures mirror those in C++ and contain memory addresses. The caller (`imagegpt.sampling.backends.cpp`) checks
shapes and dtypes, and keeps the tensors alive.
"""

import ctypes
import functools
from ctypes import POINTER, Structure, c_double, c_float, c_int64, c_void_p
from enum import IntEnum
from pathlib import Path

from imagegpt.kernels.compiler import Library, find_or_build

PREFIX_MULTIPLE = 4  # the length of a cached prefix is a multiple of this
TILE = 32  # outputs of a linear layer computed together; vectors are padded to a multiple of this
HEAD_WIDTH_MULTIPLE = 16
MAX_HEAD_WIDTH = 256
SCALE_BYTES = 4  # after each int8 vector in the cache
_OUT_OF_MEMORY = 1


class DType(IntEnum):
    """The dtype of weights and cache, as `PRECISION` in C++."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2


class LinearStruct(Structure):
    """A linear layer whose weight is tiled; `scale` and `bias` are null or padded to whole tiles."""

    _fields_ = (
        ("weight", c_void_p),
        ("scale", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("dtype", c_int64),
    )


class BlockStruct(Structure):
    """A transformer block; the norm weights are padded to whole tiles."""

    _fields_ = (
        ("norm_1", c_void_p),
        ("norm_2", c_void_p),
        ("qkv", LinearStruct),
        ("attention_proj", LinearStruct),
        ("mlp_fc", LinearStruct),
        ("mlp_proj", LinearStruct),
        ("num_heads", c_int64),
        ("attention_scale", c_float),
    )


class ModelStruct(Structure):
    """A model."""

    _fields_ = (
        ("width", c_int64),
        ("head_width", c_int64),
        ("num_blocks", c_int64),
        ("num_tokens", c_int64),
        ("num_positions", c_int64),
        ("norm_eps", c_double),
        ("token_embeddings", c_void_p),
        ("position_embeddings", c_void_p),
        ("blocks", POINTER(BlockStruct)),
        ("final_norm", c_void_p),
        ("head", LinearStruct),
    )


class CacheStruct(Structure):
    """The KV cache of an image: a prefix that other images may share, then `capacity` positions of its own."""

    _fields_ = (("own", c_void_p), ("capacity", c_int64), ("prefix", c_void_p), ("prefix_length", c_int64))


class CallStruct(Structure):
    """The arguments of a step."""

    _fields_ = (
        ("tokens", c_void_p),
        ("positions", c_void_p),
        ("caches", POINTER(CacheStruct)),
        ("images", c_int64),
        ("queries", c_int64),
        ("logits", c_void_p),
        ("num_threads", c_int64),
    )


class StepLibrary:
    """The compiled step for one dtype and head width.

    Args:
        folder: the cache of compiled libraries; None is the user's cache folder.
    Raises: OSError or RuntimeError if it cannot be compiled or loaded.
    """

    def __init__(self, dtype: DType, head_width: int, folder: Path | None = None) -> None:
        library = ctypes.CDLL(str(find_or_build(step_library(dtype, head_width), folder)))
        self._step = library.imagegpt_step
        self._step.argtypes = [POINTER(ModelStruct), POINTER(CallStruct)]
        self.redraft = library.imagegpt_redraft  # see `imagegpt.sampling.drafting`
        self.redraft.argtypes = [*[c_void_p] * 4, *[c_int64] * 3, c_void_p]
        self.redraft.restype = None

    def step(self, model: ModelStruct, call: CallStruct) -> None:
        """Compute logits, and write keys and values into the cache.

        Raises: MemoryError if the activations do not fit into memory; IndexError for a token or position outside the
            model or the cache.
        """
        status = self._step(model, call)
        if status == _OUT_OF_MEMORY:
            raise MemoryError(f"not enough memory for a step of {call.images} images and {call.queries} positions")
        if status:
            raise IndexError(f"a token is outside 0 to {model.num_tokens - 1}, or a position is outside the cache")


def padded_head_width(width: int) -> int:
    """The width of heads in the cache."""
    return -(-width // HEAD_WIDTH_MULTIPLE) * HEAD_WIDTH_MULTIPLE


def step_library(dtype: DType, head_width: int) -> Library:
    """The source and definitions of a `StepLibrary`."""
    return Library(name="step", defines=(("PRECISION", int(dtype)), ("HEAD_WIDTH", padded_head_width(head_width))))


@functools.cache
def load_step_library(dtype: DType, head_width: int) -> StepLibrary:
    """Load the library from the user's cache folder, once per process."""
    return StepLibrary(dtype, head_width)
