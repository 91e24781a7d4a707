"""Several pixels a pass, and the very same image.

A pixel is a function of its logits and its noise, and the noise is known beforehand. So pixels can be guessed and fed
all at once, and what the model draws after each guess is right as long as every guess before it was:

    fed        x_4    g_5    g_6    g_7      x_4 is known, the g are guesses
    drawn      x_5    x_6'   x_7'   x_8'     x_5 is right; if it equals g_5, x_6' is right as well, and so on

The run that agrees is kept, and one pixel more: at least one a pass, as in drawing one by one. What was drawn beyond it
makes guesses for the next pass (Jacobi iteration; Song et al., "Accelerating feedforward computation via parallel
nonlinear equation solving", 2021), better ones when what was wrong is taken into account: see `guessing`.

Axes: B images, T pixels, n positions fed at once.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float32
from torch import Tensor

from imagegpt.sampling.batch import Batch
from imagegpt.sampling.decoder import Decoder
from imagegpt.sampling.guessing import first_guesses, redrawn
from imagegpt.sampling.recording import Recorder
from imagegpt.sampling.run_length import RunLength


@dataclass
class ParallelStatistics:
    """What parallel decoding did.

    Args:
        num_pixels: drawn, of all images.
        num_passes: over an image that was not finished, of all images.
        lengths: how many passes over a batch were made with how many positions.
    """

    num_pixels: int = 0
    num_passes: int = 0
    lengths: dict[int, int] = field(default_factory=dict)

    def add(self, accepted: int, active: int, length: int) -> None:
        """Count a pass that drew `accepted` pixels of `active` images."""
        self.num_pixels += accepted
        self.num_passes += active
        self.lengths[length] = self.lengths.get(length, 0) + 1

    @property
    def pixels_per_pass(self) -> float:
        """Pixels accepted of an image in a pass, on average."""
        return self.num_pixels / self.num_passes if self.num_passes else 0.0


def draw_in_parallel(
    decoder: Decoder,
    batch: Batch,
    recorder: Recorder,
    run_length: RunLength,
    statistics: ParallelStatistics,
    row_length: int,
    influence: Float32[Tensor, "v v"] | None,
) -> Iterator[int]:
    """Draw all that is left, several pixels of each image in a pass.

    Args:
        decoder: with room for the batch.
        batch: its tokens are filled in.
        recorder: runs the passes.
        run_length: chooses how many pixels; learns from what it sees.
        statistics: added to.
        row_length: pixels in a row of the image, for the first guess.
        influence: from `guessing.influence_of`, for better guesses.
    Yields: after each pass, how many pixels of every image are there.
    Raises: LogitsNotFiniteError at the end.
    """
    num_pixels, done = batch.num_pixels, list(batch.starts)
    while min(done) < num_pixels:
        num_fed = run_length.choose()
        started = time.perf_counter()
        length = decoder.cache.rounded(min(max(done) + num_fed, num_pixels))
        recorder.run(
            (num_fed, length),
            lambda num_fed=num_fed, length=length: _draw_run(decoder, batch, num_fed, length, row_length, influence),
        )
        before, done = done, batch.position.tolist()  # waits for the device
        accepted = sum(done) - sum(before)
        active = sum(pixels < num_pixels for pixels in before)
        run_length.observe(num_fed, accepted / active, time.perf_counter() - started)
        statistics.add(accepted, active, num_fed)
        yield min(done)
    batch.check_finite()


def _draw_run(
    decoder: Decoder,
    batch: Batch,
    num_fed: int,
    length: int,
    row_length: int,
    influence: Float32[Tensor, "v v"] | None,
) -> None:
    """One pass: feed the known pixel and guesses after it, draw behind each, go on behind what agrees."""
    offsets = torch.arange(num_fed, device=batch.position.device)
    window = (batch.position.unsqueeze(1) + offsets).clamp_(max=batch.num_pixels - 1)
    fed = first_guesses(batch.tokens, window, batch.guessed, row_length)
    scores = batch.scores(decoder.feed(fed, window, length), window)
    drawn = batch.put(redrawn(scores, fed, window, influence, with_kernels=decoder.with_kernels), window)
    batch.guessed.copy_(torch.maximum(batch.guessed, batch.position + num_fed))
    agrees = (drawn[:, :-1] == fed[:, 1:]).cumprod(dim=1)
    batch.position.add_(1 + agrees.sum(dim=1)).clamp_(max=batch.num_pixels)
