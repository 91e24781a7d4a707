"""Drafts for parallel decoding: colours of pixels that cannot be known yet.

A pixel was drawn behind a draft g, and the draft was wrong: c is there instead. What would have been drawn behind c?
The model would have to be asked. But its logits are known behind g, the noise is known, and how much more likely the
next pixel's colours become behind c than behind g is much the same everywhere: near c more likely, near g less. So

    logits behind c  ~  logits behind g + influence[c] - influence[g]

where influence[c] is what the model says of the second pixel of an image whose first is c, scaled down, since elsewhere
the pixels above have their say as well. The draft is drawn from that, with the noise that belongs to it.

Axes: B images, T pixels, n positions fed at once, V colours.
"""

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from imagegpt.sampling.backends.base import StepBackend

_SHARE = 0.55  # of the influence on the second pixel, elsewhere; see decision 9
_MOST_COLORS = 2048  # the table is as large as their square


def influence_bytes(num_colors: int) -> int:
    """What `influence_of` takes."""
    return num_colors**2 * torch.float32.itemsize if num_colors <= _MOST_COLORS else 0


@torch.inference_mode()
def influence_of(backend: StepBackend, capacity: int, device: torch.device | str) -> Float32[Tensor, "v v"] | None:
    """How the colour of a pixel (row) shifts the logits of the next (columns).

    Args:
        backend: without images, with room for two pixels of each.
        capacity: of the backend.
        device: likewise.
    Returns: a table, or None for more colours than a table is made for.
    """
    num_colors = backend.num_colors
    if not influence_bytes(num_colors):
        return None
    table = torch.empty(num_colors, num_colors, device=device)
    for row in range(capacity):
        backend.admit(row, torch.empty(0, dtype=torch.int64))
    for some in torch.arange(num_colors, device=device).split(capacity):
        fed = torch.stack([torch.full_like(some, num_colors), some], dim=1)  # start token and first pixel
        positions = torch.arange(2, device=device).expand(len(some), -1)
        logits = backend.step(fed, positions, range(len(some)), 2)[:, 1]
        table[some] = _SHARE * logits.log_softmax(dim=-1)
    return table


def first_drafts(
    tokens: Int64[Tensor, "b t1"], window: Int64[Tensor, "b n"], drafted: Int64[Tensor, " b"], row_length: int
) -> Int64[Tensor, "b n"]:
    """What to feed at the positions of the window: what was drawn there, or else the nearest pixel above that was.

    Args:
        tokens: of the images.
        window: the positions.
        drafted: up to which position something was drawn already, right or wrong.
        row_length: pixels in a row of the image.
    """
    rows_up = torch.div(window - 1 - drafted.unsqueeze(1), row_length, rounding_mode="floor") + 1
    return tokens.gather(1, torch.where(rows_up > 0, (window - rows_up * row_length).clamp_min(1), window))


def redrawn(
    backend: StepBackend,
    scores: Float32[Tensor, "b n v"],
    fed: Int64[Tensor, "b n"],
    window: Int64[Tensor, "b n"],
    influence: Float32[Tensor, "v v"] | None,
) -> Int64[Tensor, "b n"]:
    """Draw behind each position, taking into account that what was fed there is not what is drawn before it.

    Args:
        backend: whose `redraw` does it.
        scores: of which the best is drawn.
        fed: at these positions; from the second on, drafts of the pixels before.
        window: the positions, of each image in order; the last one may be repeated.
        influence: from `influence_of`; None draws as if all drafts were right.
    Returns: pixels, exact up to the first that differs from the draft fed behind it, that one included.
    """
    if influence is None or scores.shape[1] == 1:
        return scores.argmax(dim=-1)
    return backend.redraw(scores, fed, window, influence)
