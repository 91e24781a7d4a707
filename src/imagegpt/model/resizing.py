"""Resizing of a model's embeddings to another number of colours or pixels.

transformers resizes all token matrices to the same number of rows and appends new rows at the end. In ImageGPT the last
input row is the start token and the output matrix has no row for it, so that would turn the start token into a colour.

Axes: T positions, C channels.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def round_up_to_multiple(num_tokens: int, multiple: int) -> int:
    """Round up to a multiple.

    Raises: ValueError if `multiple` is not a positive integer.
    """
    if not (multiple >= 1 and multiple % 1 == 0):  # rejects nan and inf too
        raise ValueError(f"pad_to_multiple_of is {multiple}: give an integer of at least 1, or None")
    return math.ceil(num_tokens / multiple) * int(multiple)


def _resize_rows(weight: Tensor, num_rows: int, std: float, around_mean: bool) -> Tensor:
    """Return the first `num_rows` rows; missing rows are sampled from N(mean of the old rows or 0, std)."""
    kept = weight[:num_rows]
    num_new = num_rows - kept.shape[0]
    new = std * torch.randn(num_new, weight.shape[1], dtype=weight.dtype, device=weight.device)
    return torch.cat([kept, weight.mean(dim=0) + new if around_mean else new])


def _parameter_like(old: Tensor, weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.contiguous(), requires_grad=old.requires_grad)


@torch.no_grad()
def resize_color_embeddings(
    wte: nn.Embedding, lm_head: nn.Linear | None, vocab_size: int, std: float, around_mean: bool = True
) -> None:
    """Resize the model to `vocab_size - 1` colours, in place; the start token stays the last input row.

    Args:
        wte: token embedding, (colours + 1, C).
        lm_head: output matrix, (colours, C), or None if the model has none.
        vocab_size: new number of input tokens, start token included.
        around_mean: centre new rows on the mean of the old ones, otherwise on 0.
    Raises: ValueError if fewer than two colours would remain, or the sizes of the two matrices do not match.
    """
    if lm_head is not None and len(lm_head.weight) != len(wte.weight) - 1:
        raise ValueError(
            f"the output matrix has {len(lm_head.weight)} rows and the token embedding {len(wte.weight)}: it must have "
            "one row for each token except the start token"
        )
    if vocab_size < 3:
        raise ValueError(
            f"{vocab_size} tokens were asked for: a model needs at least 3, two colours and the start token"
        )
    colors, sos = wte.weight[:-1], wte.weight[-1:]
    wte.weight = _parameter_like(wte.weight, torch.cat([_resize_rows(colors, vocab_size - 1, std, around_mean), sos]))
    wte.num_embeddings = vocab_size
    if lm_head is not None:
        weight = _resize_rows(lm_head.weight, vocab_size - 1, std, around_mean)
        lm_head.weight = _parameter_like(lm_head.weight, weight)
        lm_head.out_features = vocab_size - 1


@torch.no_grad()
def resize_position_embeddings(wpe: nn.Embedding, num_positions: int) -> None:
    """Interpolate the position embedding to another image size, in place.

    Positions are the pixels of a square image in raster order, so they are interpolated as a grid (bicubic), the usual
    way to adapt a vision transformer to another resolution. Position t has pixel t - 1 as its input, so the grid is
    shifted by one pixel, which is negligible here.

    Args:
        wpe: position embedding, (T, C).
        num_positions: pixels of the new image.
    Raises: ValueError if the old or the new image is not square.
    """
    old, new = math.isqrt(wpe.weight.shape[0]), math.isqrt(max(0, num_positions))
    if old * old != wpe.weight.shape[0] or new * new != num_positions or new < 1:
        raise ValueError(
            f"positions can only be interpolated between square images, not from {wpe.weight.shape[0]} "
            f"to {num_positions} pixels: choose a square number"
        )
    grid = wpe.weight.float().T.reshape(1, -1, old, old)
    grid = functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    weight = grid.reshape(-1, num_positions).T.to(wpe.weight.dtype)
    wpe.weight = _parameter_like(wpe.weight, weight)
    wpe.num_embeddings = num_positions
