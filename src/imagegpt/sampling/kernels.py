"""Kernels in C++ for what a pixel costs on a CPU: products with few inputs, and attention of few queries.

They are in the folder cpp, are compiled by the machine's own C++ compiler when they are first wanted, which takes some
seconds, and kept on disk. Where there is no compiler everything runs without them.

Axes: M inputs, I and O their and the outputs' features, T tiles; B images, n queries or positions, V colours, H heads,
D head width, S positions of the cache, G prompts, P positions of theirs.
"""

import contextlib
import hashlib
import os
import platform
import secrets
import subprocess
import threading
from pathlib import Path

import torch
from jaxtyping import Float, Float32, Int8, Int64, Shaped
from torch import Tensor

from imagegpt.sampling.machine import machine

TILE = 32  # outputs computed together
SCALE_BYTES = 4  # behind each vector of int8 in a cache
_LANES = 16
_HEAD_WIDTHS = {_LANES * number for number in (1, 2, 3, 4, 5, 6, 7, 8, 12)}
_FOLDER = Path(__file__).with_name("cpp")
_FLAGS = ("-O3", "-std=gnu++17", "-ffp-contract=fast", "-shared", "-fPIC")
_TIMEOUT_S = 300

_lock = threading.Lock()
_is_loaded = False


def load(folder: Path, *, build: bool) -> bool:
    """See that the kernels can be called, in this process from now on.

    Args:
        folder: where they are kept.
        build: compile them if they are not there.
    Returns: whether they can.
    Raises: OSError or RuntimeError if they were to be compiled and cannot be.
    """
    global _is_loaded
    with _lock:
        if _is_loaded:
            return True
        path = folder / f"kernels-{_key()}.so"
        if not os.path.isfile(path):  # noqa: PTH113 - it is silent where we may not look
            if not build:
                return False
            _build(path)
        try:
            torch.ops.load_library(path)
        except OSError:
            with contextlib.suppress(OSError):  # damaged; in a folder that we may only read, it stays
                path.unlink()
            if not build:
                return False
            _build(path)
            torch.ops.load_library(path)
        _register_shapes()
        _is_loaded = True
        return True


def can_tile(weight: Tensor) -> bool:
    """Whether the kernels know how to multiply with a weight (O, I)."""
    kinds = (torch.float32, torch.bfloat16, torch.int8)
    return weight.device.type == "cpu" and weight.dtype in kinds and weight.shape[1] % 2 == 0


def tiled(rows: Float[Tensor, "o i"]) -> Tensor:
    """A weight in the order in which the kernel reads it: TILE outputs at a time, the last of them filled with zeros.

    Returns: (T, I, TILE) of float32; (T, I / 2, TILE, 2) of narrower types, two inputs of an output side by side.
    """
    num_outputs, width = rows.shape
    num_tiles = -(-num_outputs // TILE)
    padded = rows.new_zeros(num_tiles * TILE, width)
    padded[:num_outputs] = rows
    if rows.dtype == torch.float32:
        return padded.view(num_tiles, TILE, width).transpose(1, 2).contiguous()
    return padded.view(num_tiles, TILE, width // 2, 2).transpose(1, 2).contiguous()


def untiled(weight: Tensor, num_outputs: int) -> Float[Tensor, "o i"]:
    """The weight that was tiled."""
    return weight.transpose(1, 2).reshape(weight.shape[0] * TILE, -1)[:num_outputs].contiguous()


def tiled_linear(
    x: Float32[Tensor, "m i"], weight: Tensor, scale: Float32[Tensor, " o"] | None, num_outputs: int
) -> Float32[Tensor, "m o"]:
    """Products with a tiled weight, each output times its scale if there is one; needs `load`.

    Where the processor multiplies pairs of bfloat16, inputs are rounded to it for weights in bfloat16 or int8. Sums are
    in float32, and the same ones for every number of inputs.
    """
    return torch.ops.imagegpt.tiled_linear(x, weight, scale, num_outputs)


def can_attend(head_width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels know how to attend over such a cache."""
    kinds = (torch.float32, torch.bfloat16, torch.int8)
    return device.type == "cpu" and dtype in kinds and head_width in _HEAD_WIDTHS


def quantized(rows: Float32[Tensor, "*lead d"]) -> Int8[Tensor, "*lead d4"]:
    """Vectors as int8, the largest number of each becoming 127, and behind them four bytes of scale; needs `load`."""
    return torch.ops.imagegpt.quantized_rows(rows)


def cached_attention(
    query: Float32[Tensor, "b h n d"],
    keys: Shaped[Tensor, "b h s d"],
    values: Shaped[Tensor, "b h s d"],
    lengths: Int64[Tensor, "b n"],
    shared_keys: Shaped[Tensor, "g h p d"] | None,
    shared_values: Shaped[Tensor, "g h p d"] | None,
) -> Float32[Tensor, "b n h d"]:
    """Attention over a cache, which is read once, as far as it is seen; needs `load`.

    Args:
        query: scaled.
        keys: of each image, in float32, bfloat16 or as `quantized`.
        values: likewise.
        lengths: how many of its image's positions each query sees, from the first, at least one.
        shared_keys: of prompts, each seen whole by B / G images, one after the other.
        shared_values: likewise.
    """
    return torch.ops.imagegpt.cached_attention(query, keys, values, lengths, shared_keys, shared_values)


def redrawn(
    scores: Float32[Tensor, "b n v"],
    fed: Int64[Tensor, "b n"],
    positions: Int64[Tensor, "b n"],
    influence: Float32[Tensor, "v v"],
) -> Int64[Tensor, "b n"]:
    """As `guessing.redrawn`; needs `load`."""
    return torch.ops.imagegpt.redrawn(scores, fed, positions, influence)


def _build(path: Path) -> None:
    """Compile the kernels into a file, which is there whole or not at all."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch.utils.cpp_extension import include_paths, library_paths

    compiler = get_cpp_compiler()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.tmp.so")
    native = "-march=native" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "-mcpu=native"
    places = [*(f"-I{folder}" for folder in include_paths()), *(f"-L{folder}" for folder in library_paths())]
    command = [compiler, native, *_FLAGS, "-fopenmp", *places, str(_FOLDER / "kernels.cpp"), "-o", str(temporary)]
    try:
        done = subprocess.run(
            [*command, "-ltorch", "-ltorch_cpu", "-lc10"],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr.strip()]
            raise RuntimeError(f"{compiler} cannot compile the kernels ({lines[0]})")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _key() -> str:
    """What the compiled kernels depend on."""
    sources = [path.read_bytes() for path in sorted(_FOLDER.iterdir())]
    facts = [machine().encode(), repr(_FLAGS).encode(), *sources]
    return hashlib.sha256(b"\n".join(facts)).hexdigest()[:24]


def _register_shapes() -> None:
    """Tell torch what the kernels return, so that it can compile around them."""

    @torch.library.register_fake("imagegpt::tiled_linear")
    def _(x: Tensor, weight: Tensor, scale: Tensor | None, num_outputs: int) -> Tensor:
        return x.new_empty(x.shape[0], num_outputs)

    @torch.library.register_fake("imagegpt::cached_attention")
    def _(query: Tensor, *_: Tensor | None) -> Tensor:
        batch, heads, queries, width = query.shape
        return query.new_empty(batch, queries, heads, width)

    @torch.library.register_fake("imagegpt::quantized_rows")
    def _(x: Tensor) -> Tensor:
        return x.new_empty(*x.shape[:-1], x.shape[-1] + SCALE_BYTES, dtype=torch.int8)
