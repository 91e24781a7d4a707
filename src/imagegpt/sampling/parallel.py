"""Several pixels a pass, and the very same image.

A pixel is a function of its logits and its noise, and the noise is known beforehand. So pixels can be drafted and fed
all at once, and what the model draws after each draft is right as long as every draft before it was:

    fed        x_4    g_5    g_6    g_7      x_4 is known, the g are drafts
    drawn      x_5    x_6'   x_7'   x_8'     x_5 is right; if it equals g_5, x_6' is right as well, and so on

The run that agrees is kept, and one pixel more: at least one a pass, as in drawing one by one. What was drawn beyond it
makes drafts for the next pass (Jacobi iteration; Song et al., "Accelerating feedforward computation via parallel
nonlinear equation solving", 2021), better ones when what was wrong is taken into account: see `drafting`.

Axes: B images, T pixels, n positions fed at once.
"""

import functools
import math
import time
from collections.abc import Callable

import torch
from jaxtyping import Float32
from torch import Tensor

from imagegpt.config import ImageGPTConfig
from imagegpt.sampling.backends.base import StepBackend
from imagegpt.sampling.draft_length import DraftLength
from imagegpt.sampling.drafting import first_drafts, influence_of, redrawn
from imagegpt.sampling.session import Decoder, Session, on_device

_READ_AT_ONCE = 128  # images of two pixels, for the influence of colours


def prepare_parallel(
    open_backend: Callable[[int, int], StepBackend], config: ImageGPTConfig, device: torch.device
) -> Callable[[int], Decoder]:
    """What makes a decoder for each session; what all of them use is computed here, once.

    Args:
        open_backend: makes a backend, by capacity and pixels of the images.
        config: of the model.
        device: likewise.
    """
    side = math.isqrt(config.n_positions)
    row_length = side if side**2 == config.n_positions else 1
    influence = None
    if config.n_positions > 1:
        capacity = min(_READ_AT_ONCE, config.num_colors)
        influence = influence_of(open_backend(capacity, 2), capacity, device)
    return functools.partial(ParallelDecoder, row_length=row_length, influence=influence)


class ParallelDecoder(Decoder):
    """Several pixels of each row in a pass.

    Args:
        num_pixels: T.
        row_length: pixels in a row of the image, for the first drafts.
        influence: from `drafting.influence_of`, for better drafts.
    """

    def __init__(self, num_pixels: int, *, row_length: int, influence: Float32[Tensor, "v v"] | None) -> None:
        self._row_length, self._influence = row_length, influence
        self._length = DraftLength(num_pixels)
        self._drafted: dict[int, int] = {}  # by row, up to which position something was drawn already

    def advance(self, session: Session, rows: list[int]) -> None:
        """See `Decoder`: feed the known pixel and drafts after it, draw behind each, move on behind what agrees."""
        num_fed, started = self._length.choose(), time.perf_counter()
        before = [session.positions[row] for row in rows]
        drafted = [max(self._drafted.get(row, 0), start) for row, start in zip(rows, before, strict=True)]
        device = session.tokens.device
        start = on_device(before, device).unsqueeze(1)
        window = (start + torch.arange(num_fed, device=device)).clamp_(max=session.num_pixels - 1)
        tokens = session.tokens[session.index(rows)]
        fed = first_drafts(tokens, window, on_device(drafted, device), self._row_length)
        drawn = redrawn(session.backend, session.scores(rows, fed, window), fed, window, self._influence)
        session.put(rows, drawn, window)
        agrees = (drawn[:, :-1] == fed[:, 1:]).cumprod(dim=1).sum(dim=1).tolist()  # waits for the device
        for row, position, reached, right in zip(rows, before, drafted, agrees, strict=True):
            session.positions[row] = min(position + 1 + right, session.num_pixels)
            finished = session.positions[row] == session.num_pixels
            self._drafted[row] = 0 if finished else max(reached, position + num_fed)
        accepted = sum(session.positions[row] for row in rows) - sum(before)
        self._length.observe(num_fed, accepted / len(rows), time.perf_counter() - started)
        session.statistics.add(accepted, len(rows), num_fed)
