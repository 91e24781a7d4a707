"""Parallel decoding: several pixels per pass, and exactly the image that sequential decoding gives.

A pixel is a function of its logits and its noise, and the noise is known in advance. So the decoder drafts several
pixels, feeds them all at once, and samples a pixel after each of them. A sampled pixel is exact if every draft before
it was right:

    fed        x_4    g_5    g_6    g_7      x_4 is known, the g are drafts
    sampled    x_5    x_6'   x_7'   x_8'     x_5 is exact; if it equals g_5, x_6' is exact as well, and so on

The decoder accepts the drafts that agree and one pixel more, so at least one pixel per pass. The pixels sampled beyond
are the drafts of the next pass (Jacobi iteration; Song et al., "Accelerating feedforward computation via parallel
nonlinear equation solving", 2021), improved as `drafting` describes.

Axes: B images, T pixels, n positions per pass.
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
from imagegpt.sampling.draft_length import DraftLengthTuner
from imagegpt.sampling.drafting import build_bigram_table, draft_tokens, redraft
from imagegpt.sampling.session import Decoder, Session, index_tensor

_BIGRAM_BATCH = 128  # images of two pixels per pass, while building the bigram table


def prepare_parallel(
    make_backend: Callable[[int, int], StepBackend], config: ImageGPTConfig, device: torch.device
) -> Callable[[int], Decoder]:
    """Build the bigram table once; return a function that makes the decoder of a session.

    Args:
        make_backend: makes a backend from capacity and pixels per image.
    """
    side = math.isqrt(config.n_positions)
    row_length = side if side**2 == config.n_positions else 1
    bigrams = None
    if config.n_positions > 1:
        capacity = min(_BIGRAM_BATCH, config.num_colors)
        bigrams = build_bigram_table(make_backend(capacity, 2), capacity, device)
    return functools.partial(ParallelDecoder, row_length=row_length, bigrams=bigrams)


class ParallelDecoder(Decoder):
    """Drafts several pixels of each row per pass, and accepts those that are right.

    Args:
        row_length: pixels per row of the image, for initial drafts.
    """

    def __init__(self, num_pixels: int, *, row_length: int, bigrams: Float32[Tensor, "v v"] | None) -> None:
        self._row_length, self._bigrams = row_length, bigrams
        self._length_tuner = DraftLengthTuner(num_pixels)
        self._num_drafted: dict[int, int] = {}  # by row, the position up to which it has drafts

    def advance(self, session: Session, rows: list[int]) -> None:
        """See `Decoder`."""
        length, started = self._length_tuner.choose(), time.perf_counter()
        before = [session.positions[row] for row in rows]
        num_drafted = [max(self._num_drafted.get(row, 0), start) for row, start in zip(rows, before, strict=True)]
        device = session.tokens.device
        start = index_tensor(before, device).unsqueeze(1)
        window = (start + torch.arange(length, device=device)).clamp_(max=session.num_pixels - 1)
        tokens = session.tokens[session.row_index(rows)]
        fed = draft_tokens(tokens, window, index_tensor(num_drafted, device), self._row_length)
        scores = session.compute_scores(rows, fed, window)
        sampled = redraft(session.backend, scores, fed, window, self._bigrams)
        session.write_pixels(rows, sampled, window)
        num_right = (sampled[:, :-1] == fed[:, 1:]).cumprod(dim=1).sum(dim=1).tolist()  # waits for the device
        for row, position, drafted, right in zip(rows, before, num_drafted, num_right, strict=True):
            session.positions[row] = min(position + 1 + right, session.num_pixels)
            is_finished = session.positions[row] == session.num_pixels
            self._num_drafted[row] = 0 if is_finished else max(drafted, position + length)
        num_accepted = sum(session.positions[row] for row in rows) - sum(before)
        self._length_tuner.observe(length, num_accepted / len(rows), time.perf_counter() - started)
        session.statistics.add(num_accepted, len(rows), length)
