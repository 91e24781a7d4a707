"""A step of sampling as one call into C++: the structures it takes, and the library that has it.

Everything here is memory addresses. Whoever fills the structures (`imagegpt.sampling.backends.cpp`) checks shapes and
types, and keeps the tensors alive that they point to.
"""

import ctypes
import functools
from ctypes import POINTER, Structure, c_double, c_float, c_int64, c_void_p
from enum import IntEnum
from pathlib import Path

from imagegpt.kernels.compiler import Library, find_or_build

PREFIX_MULTIPLE = 4  # of positions in a prefix
TILE = 32  # outputs of a product that are computed together, and the multiple to which vectors are padded
HEAD_WIDTH_MULTIPLE = 16
WIDEST_HEAD = 256
SCALE_BYTES = 4  # behind each vector of int8 in a cache
_NO_MEMORY = 1


class Kind(IntEnum):
    """How numbers are stored."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2


class LinearStruct(Structure):
    """A product with a weight in tiles; `scale` and `bias` are null or padded to whole tiles."""

    _fields_ = (
        ("weight", c_void_p),
        ("scale", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("kind", c_int64),
    )


class BlockStruct(Structure):
    """A block of the model; the gains of norms are padded to whole tiles."""

    _fields_ = (
        ("norm_1", c_void_p),
        ("norm_2", c_void_p),
        ("qkv", LinearStruct),
        ("attention_out", LinearStruct),
        ("widen", LinearStruct),
        ("narrow", LinearStruct),
        ("heads", c_int64),
        ("score_factor", c_float),
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
        ("last_norm", c_void_p),
        ("head", LinearStruct),
    )


class CacheStruct(Structure):
    """What an image has cached: `room` positions of its own, behind those of a prefix that others may share."""

    _fields_ = (("own", c_void_p), ("room", c_int64), ("prefix", c_void_p), ("prefix_length", c_int64))


class CallStruct(Structure):
    """A step of some images."""

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
    """The compiled step of one precision and head width.

    Args:
        kind: of weights and cache.
        head_width: of the model's heads.
        folder: where it is kept; None is the user's cache folder.
    Raises: OSError or RuntimeError if it cannot be compiled or loaded.
    """

    def __init__(self, kind: Kind, head_width: int, folder: Path | None = None) -> None:
        library = ctypes.CDLL(str(find_or_build(step_library(kind, head_width), folder)))
        self._step = library.imagegpt_step
        self._step.argtypes = [POINTER(ModelStruct), POINTER(CallStruct)]
        self.redraw = library.imagegpt_redraw  # see `imagegpt.sampling.drafting`
        self.redraw.argtypes = [*[c_void_p] * 4, *[c_int64] * 3, c_void_p]
        self.redraw.restype = None

    def step(self, model: ModelStruct, call: CallStruct) -> None:
        """Compute the logits of a call and write its keys and values.

        Raises: MemoryError if there is no memory for what is in between; IndexError for a token or position that the
            model or the caches do not have.
        """
        status = self._step(model, call)
        if status == _NO_MEMORY:
            raise MemoryError(f"there is no memory for a step of {call.images} images and {call.queries} positions")
        if status:
            raise IndexError(f"a token is not below {model.num_tokens}, or a position has no place in the cache")


def padded_head_width(width: int) -> int:
    """The width at which heads are stored."""
    return -(-width // HEAD_WIDTH_MULTIPLE) * HEAD_WIDTH_MULTIPLE


def step_library(kind: Kind, head_width: int) -> Library:
    """What `StepLibrary` is compiled from."""
    return Library(name="step", defines=(("PRECISION", int(kind)), ("HEAD_WIDTH", padded_head_width(head_width))))


@functools.cache
def loaded_step(kind: Kind, head_width: int) -> StepLibrary:
    """The library in the user's cache folder, which a process loads once."""
    return StepLibrary(kind, head_width)
