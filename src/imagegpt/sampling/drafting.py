"""Drafts for parallel decoding: guesses for pixels whose predecessors are not known yet.

Suppose the draft g of a pixel was fed and turned out wrong: the pixel is c. The logits of the next pixel after c would
need another pass of the model. But its logits after g are known, so is its noise, and the effect of a colour on the
logits of the next pixel is similar everywhere: colours near it become more likely. So

    logits after c  ~  logits after g + bigrams[c] - bigrams[g]

where bigrams[c] are the model's log-probabilities of the second pixel of an image whose first is c, scaled down because
elsewhere the pixels above matter as well. The new draft is sampled from these logits, with the noise of its pixel.

Axes: B images, T pixels, n positions per pass, V colours.
"""

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from imagegpt.sampling.backends.base import StepBackend

_BIGRAM_WEIGHT = 0.55  # scale of the second pixel's log-probabilities, see decision 9
_MAX_COLORS = 2048  # the size of the table is the square of this


def bigram_table_bytes(num_colors: int) -> int:
    """Size of the table of `build_bigram_table`."""
    return num_colors**2 * torch.float32.itemsize if num_colors <= _MAX_COLORS else 0


@torch.inference_mode()
def build_bigram_table(
    backend: StepBackend, capacity: int, device: torch.device | str
) -> Float32[Tensor, "v v"] | None:
    """Measure how the colour of a pixel (row) changes the logits of the next pixel (columns).

    Args:
        backend: without images, with room for two pixels of each.
    Returns: scaled log-probabilities, or None if the palette is too large for a table.
    """
    num_colors = backend.num_colors
    if not bigram_table_bytes(num_colors):
        return None
    table = torch.empty(num_colors, num_colors, device=device)
    for row in range(capacity):
        backend.admit(row, torch.empty(0, dtype=torch.int64))
    for colors in torch.arange(num_colors, device=device).split(capacity):
        tokens = torch.stack([torch.full_like(colors, num_colors), colors], dim=1)  # start token and first pixel
        positions = torch.arange(2, device=device).expand(len(colors), -1)
        logits = backend.step(tokens, positions, range(len(colors)), 2)[:, 1]
        table[colors] = _BIGRAM_WEIGHT * logits.log_softmax(dim=-1)
    return table


def draft_tokens(
    tokens: Int64[Tensor, "b t1"], window: Int64[Tensor, "b n"], num_drafted: Int64[Tensor, " b"], row_length: int
) -> Int64[Tensor, "b n"]:
    """The tokens to feed in a window: the draft of an earlier pass, or else the nearest pixel above that has one.

    Args:
        num_drafted: the position up to which an image has drafts, right or wrong.
        row_length: pixels per row of the image.
    """
    rows_up = torch.div(window - 1 - num_drafted.unsqueeze(1), row_length, rounding_mode="floor") + 1
    return tokens.gather(1, torch.where(rows_up > 0, (window - rows_up * row_length).clamp_min(1), window))


def redraft(
    backend: StepBackend,
    scores: Float32[Tensor, "b n v"],
    tokens: Int64[Tensor, "b n"],
    window: Int64[Tensor, "b n"],
    bigrams: Float32[Tensor, "v v"] | None,
) -> Int64[Tensor, "b n"]:
    """Sample the pixel at each position; correct the scores after a wrong draft, to get better drafts.

    Args:
        scores: see `gumbel_scores`.
        tokens: fed at these positions; from the second on, drafts of the pixel before.
        window: positions, ascending for each image; the last one may repeat.
        bigrams: from `build_bigram_table`; None samples as if all drafts were right.
    Returns: pixels. Up to and including the first that differs from the draft fed at the next position, they are exact;
        the others are drafts.
    """
    if bigrams is None or scores.shape[1] == 1:
        return scores.argmax(dim=-1)
    return backend.redraft(scores, tokens, window, bigrams)
