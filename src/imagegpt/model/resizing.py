"""Changing the number of colours or of pixels of a model that exists.

transformers resizes every token matrix to the same number of rows and appends new ones at the end. In ImageGPT the last
input row is the start token and the output has no row for it, so that would turn the start token into a colour.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def padded(num_tokens: int, multiple: int) -> int:
    """`num_tokens` or the next multiple of `multiple`, which is refused with a ValueError if it is not at least 1."""
    if not (multiple >= 1 and multiple % 1 == 0):  # neither nan nor inf is
        raise ValueError(f"pad_to_multiple_of is {multiple}: give a whole number of at least 1, or None")
    return math.ceil(num_tokens / multiple) * int(multiple)


def _grown(weight: Tensor, num_rows: int, std: float, around_mean: bool) -> Tensor:
    """The first `num_rows` rows; rows that do not exist yet are drawn from N(mean of the old ones or 0, std)."""
    kept = weight[:num_rows]
    num_new = num_rows - kept.shape[0]
    new = std * torch.randn(num_new, weight.shape[1], dtype=weight.dtype, device=weight.device)
    return torch.cat([kept, weight.mean(dim=0) + new if around_mean else new])


def _with_weight(weight: Tensor, requires_grad: bool) -> nn.Parameter:
    return nn.Parameter(weight.contiguous(), requires_grad=requires_grad)


@torch.no_grad()
def resize_color_embeddings(
    wte: nn.Embedding, lm_head: nn.Linear | None, vocab_size: int, std: float, around_mean: bool = True
) -> None:
    """Give the model `vocab_size - 1` colours, in place; the start token stays the last input row.

    Args:
        wte: token embedding, (colours + 1, C).
        lm_head: output matrix, (colours, C), or None where the model has none.
        vocab_size: new number of input tokens, start token included.
        std: spread of new rows.
        around_mean: they are spread around the mean of the old ones, otherwise around 0.
    Raises: ValueError if fewer than two colours would be left, or the two matrices do not belong together.
    """
    if lm_head is not None and len(lm_head.weight) != len(wte.weight) - 1:
        raise ValueError(
            f"the output matrix has {len(lm_head.weight)} rows and the token embedding {len(wte.weight)}: there must "
            "be one row for each token but the start token"
        )
    if vocab_size < 3:
        raise ValueError(
            f"{vocab_size} tokens were asked for: a model needs at least 3, two colours and the start token"
        )
    colors, sos = wte.weight[:-1], wte.weight[-1:]
    weight = torch.cat([_grown(colors, vocab_size - 1, std, around_mean), sos])
    wte.weight = _with_weight(weight, wte.weight.requires_grad)
    wte.num_embeddings = vocab_size
    if lm_head is not None:
        weight = _grown(lm_head.weight, vocab_size - 1, std, around_mean)
        lm_head.weight = _with_weight(weight, lm_head.weight.requires_grad)
        lm_head.out_features = vocab_size - 1


@torch.no_grad()
def resize_position_embeddings(wpe: nn.Embedding, num_positions: int) -> None:
    """Stretch the position embedding to another image size, in place.

    Positions are the cells of a square image in raster order, so they are interpolated as one (bicubic), the usual way
    to move a vision transformer to another resolution; position t sees pixel t - 1, so the grid is off by one pixel,
    which no interpolation of learned vectors is fine enough to notice.

    Args:
        wpe: position embedding, (T, C).
        num_positions: pixels of the new image.
    Raises: ValueError if the old or the new image is not square.
    """
    old, new = math.isqrt(wpe.weight.shape[0]), math.isqrt(max(0, num_positions))
    if old * old != wpe.weight.shape[0] or new * new != num_positions or new < 1:
        raise ValueError(
            f"positions can be interpolated between square images only, not from {wpe.weight.shape[0]} "
            f"to {num_positions} pixels: choose a square number"
        )
    grid = wpe.weight.float().T.reshape(1, -1, old, old)
    grid = functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    weight = grid.reshape(-1, num_positions).T.to(wpe.weight.dtype)
    wpe.weight = _with_weight(weight, wpe.weight.requires_grad)
    wpe.num_embeddings = num_positions
