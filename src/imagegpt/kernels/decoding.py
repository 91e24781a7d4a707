"""What a pixel costs: products with few inputs, and attention of few queries. `building.load` must have been called.

Axes: M inputs, I and O their and the outputs' features, T tiles; B images, n queries or positions, V colours, H heads,
D head width, S positions of the cache, G prompts, P positions of theirs.
"""

import torch
from jaxtyping import Float, Float32, Int8, Int64, Shaped
from torch import Tensor

TILE = 32  # outputs computed together
SCALE_BYTES = 4  # behind each vector of int8 in a cache
_LANES = 16
_HEAD_WIDTHS = {_LANES * number for number in (1, 2, 3, 4, 5, 6, 7, 8, 12)}


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
    """Products with a tiled weight, each output times its scale if there is one.

    Where the processor multiplies pairs of bfloat16, inputs are rounded to it for weights in bfloat16 or int8. Sums are
    in float32, and the same ones for every number of inputs.
    """
    return torch.ops.imagegpt.tiled_linear(x, weight, scale, num_outputs)


def can_attend(head_width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels know how to attend over such a cache."""
    kinds = (torch.float32, torch.bfloat16, torch.int8)
    return device.type == "cpu" and dtype in kinds and head_width in _HEAD_WIDTHS


def quantized(rows: Float32[Tensor, "*lead d"]) -> Int8[Tensor, "*lead d4"]:
    """Vectors as int8, the largest number of each becoming 127, and behind them four bytes of scale."""
    return torch.ops.imagegpt.quantized_rows(rows)


def cached_attention(
    query: Float32[Tensor, "b h n d"],
    keys: Shaped[Tensor, "b h s d"],
    values: Shaped[Tensor, "b h s d"],
    lengths: Int64[Tensor, "b n"],
    shared_keys: Shaped[Tensor, "g h p d"] | None,
    shared_values: Shaped[Tensor, "g h p d"] | None,
) -> Float32[Tensor, "b n h d"]:
    """Attention over a cache, which is read once, as far as it is seen.

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
    """As `guessing.redrawn`."""
    return torch.ops.imagegpt.redrawn(scores, fed, positions, influence)


def register() -> None:
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
