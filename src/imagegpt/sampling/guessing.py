"""Guesses for parallel decoding: colours of pixels that cannot be known yet.

A pixel was drawn behind a guess g, and the guess was wrong: c is there instead. What would have been drawn behind c?
The model would have to be asked. But its logits are known behind g, the noise is known, and how much more likely the
next pixel's colours become behind c than behind g is much the same everywhere: near c more likely, near g less. So

    logits behind c  ~  logits behind g + influence[c] - influence[g]

where influence[c] is what the model says of the second pixel of an image whose first is c, scaled down, since elsewhere
the pixels above have their say as well. The guess is drawn from that, with the noise that belongs to it.

Axes: B images, T pixels, n positions fed at once, V colours.
"""

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from imagegpt.kernels import decoding as kernels
from imagegpt.model.modeling import ImageGPTForCausalImageModeling

_SHARE = 0.55  # of the influence on the second pixel, elsewhere; see decision 9
_MOST_COLORS = 2048  # the table is as large as their square
_READ_AT_ONCE = 128  # images of two pixels


def influence_bytes(num_colors: int) -> int:
    """What `influence_of` takes."""
    return num_colors**2 * torch.float32.itemsize if num_colors <= _MOST_COLORS else 0


def influence_of(model: ImageGPTForCausalImageModeling) -> Float32[Tensor, "v v"] | None:
    """How the colour of a pixel (row) shifts the logits of the next (columns).

    Returns: a table, or None for a model of one pixel or more colours than a table is made for.
    """
    num_colors = model.config.num_colors
    if not influence_bytes(num_colors) or model.config.n_positions < 2:
        return None
    table = torch.empty(num_colors, num_colors, device=model.device)
    colors = torch.arange(num_colors, device=model.device)
    for some in colors.split(_READ_AT_ONCE):
        fed = torch.stack([torch.full_like(some, num_colors), some], dim=1)  # start token and first pixel
        logits = model(fed, use_cache=False).logits[:, 1].float()
        table[some] = _SHARE * logits.log_softmax(dim=-1)
    return table


def first_guesses(
    tokens: Int64[Tensor, "t1 b"], window: Int64[Tensor, "b n"], guessed: Int64[Tensor, " b"], row_length: int
) -> Int64[Tensor, "b n"]:
    """What to feed at the positions of the window: what was drawn there, or else the nearest pixel above that was."""
    rows_up = torch.div(window - 1 - guessed.unsqueeze(1), row_length, rounding_mode="floor") + 1
    source = torch.where(rows_up > 0, (window - rows_up * row_length).clamp_min(1), window)
    return tokens.gather(0, source.t()).t().contiguous()


def redrawn(
    scores: Float32[Tensor, "b n v"],
    fed: Int64[Tensor, "b n"],
    window: Int64[Tensor, "b n"],
    influence: Float32[Tensor, "v v"] | None,
    *,
    with_kernels: bool,
) -> Int64[Tensor, "b n"]:
    """Draw behind each position, taking into account that what was fed there is not what is drawn before it.

    Args:
        scores: of which the best is drawn.
        fed: at these positions; from the second on, guesses of the pixels before.
        window: the positions, of each image in order; the last one may be repeated.
        influence: from `influence_of`; None draws as if all guesses were right.
        with_kernels: whether `kernels` may be called.
    Returns: pixels, exact up to the first that differs from the guess fed behind it, that one included.
    """
    if influence is None or scores.shape[1] == 1:
        return scores.argmax(dim=-1)
    if with_kernels and scores.dtype == torch.float32:
        return kernels.redrawn(scores, fed, window, influence)
    drawn = [scores[:, 0].argmax(dim=-1)]
    for index in range(1, scores.shape[1]):
        shift = influence[drawn[-1]] - influence[fed[:, index]]
        is_new = window[:, index] > window[:, index - 1]
        drawn.append(torch.where(is_new, (scores[:, index] + shift).argmax(dim=-1), drawn[-1]))
    return torch.stack(drawn, dim=1)
