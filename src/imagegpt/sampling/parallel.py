"""Several pixels a pass, and the very same image.

A pixel is a function of its logits and its noise, and the noise is known beforehand. So pixels can be guessed and fed
all at once, and what the model draws after each guess is right as long as every guess before it was:

    fed        x_4    g_5    g_6    g_7      x_4 is known, the g are guesses
    drawn      x_5    x_6'   x_7'   x_8'     x_5 is right; if it equals g_5, x_6' is right as well, and so on

The run that agrees is kept, and one pixel more: at least one a pass, as in drawing one by one. What was drawn beyond it
is the best guess for the next pass (Jacobi iteration; Song et al., "Accelerating feedforward computation via parallel
nonlinear equation solving", 2021), and the pixel above is the first guess for one that was never drawn.

Axes: B images, T pixels, n positions fed at once.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Int64
from torch import Tensor

from imagegpt.sampling.batch import Batch
from imagegpt.sampling.decoder import Decoder
from imagegpt.sampling.recording import Recorder

_LENGTHS = (1, 4, 8, 16, 32, 64)
_FIRST_LENGTH = 16
_MEASURED_PASSES = 2  # passes of a length before its speed is believed
_FIRST_PATIENCE, _LAST_PATIENCE = 16, 256  # passes between looks at a neighbouring length, which double
_MEMORY, _LOOK_MEMORY = 0.8, 0.5  # what is left of a running mean after one more measurement, and after a look


@dataclass
class _Speed:
    """Running means for one length of run."""

    num_passes: int = 0
    accepted: float = 0.0
    seconds: float = 0.0

    def add(self, accepted: float, seconds: float, memory: float) -> None:
        """Take a pass into account; the first one, which may include compiling, only until there is another."""
        old = memory if self.num_passes > 1 else 0.0
        self.accepted = old * self.accepted + (1 - old) * accepted
        self.seconds = old * self.seconds + (1 - old) * seconds
        self.num_passes += 1

    @property
    def pixels_per_second(self) -> float:
        """What counts."""
        return self.accepted / self.seconds if self.seconds else 0.0


class RunLength:
    """Chooses how many pixels to feed in a pass, by the clock: the length that gives most pixels a second.

    It climbs: from the best length known, neighbours that were not measured are tried first, then the best is used and
    a neighbour looked at again from time to time. The images do not depend on it.

    Args:
        most: pixels of an image.
    """

    def __init__(self, most: int) -> None:
        self.lengths = [length for length in _LENGTHS if length <= most]
        self._speeds = {length: _Speed() for length in self.lengths}
        self._patience, self._since_look, self._upwards = _FIRST_PATIENCE, 0, True

    def choose(self) -> int:
        """The length of the next pass."""
        best = self.best
        if self._speeds[best].num_passes < _MEASURED_PASSES:
            return best
        for neighbour in self._neighbours(best):
            if self._speeds[neighbour].num_passes < _MEASURED_PASSES:
                return neighbour
        if self._since_look < self._patience:
            self._since_look += 1
            return best
        self._since_look = 0
        self._patience = min(2 * self._patience, _LAST_PATIENCE)
        self._upwards = not self._upwards
        return self._neighbours(best)[-1 if self._upwards else 0]

    @property
    def best(self) -> int:
        """The fastest length so far."""
        measured = [length for length in self.lengths if self._speeds[length].num_passes >= _MEASURED_PASSES]
        if not measured:
            return min(_FIRST_LENGTH, self.lengths[-1])
        return max(measured, key=lambda length: self._speeds[length].pixels_per_second)

    def observe(self, length: int, accepted: float, seconds: float) -> None:
        """What a pass of some length gave.

        Args:
            length: positions fed.
            accepted: pixels of an image, on average.
            seconds: it took.
        """
        best = self.best
        self._speeds[length].add(accepted, seconds, _MEMORY if length == best else _LOOK_MEMORY)
        if self.best != best:
            self._patience = _FIRST_PATIENCE

    def _neighbours(self, length: int) -> list[int]:
        index = self.lengths.index(length)
        near = self.lengths[max(0, index - 1) : index + 2]
        return [other for other in near if other != length] or [length]


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
) -> Iterator[int]:
    """Draw all that is left, several pixels of each image in a pass.

    Args:
        decoder: with room for the batch.
        batch: its tokens are filled in.
        recorder: runs the passes.
        run_length: chooses how many pixels; learns from what it sees.
        statistics: added to.
        row_length: pixels in a row of the image, for the first guess.
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
            lambda num_fed=num_fed, length=length: _draw_run(decoder, batch, num_fed, length, row_length),
        )
        before, done = done, batch.position.tolist()  # waits for the device
        accepted = sum(done) - sum(before)
        active = sum(pixels < num_pixels for pixels in before)
        run_length.observe(num_fed, accepted / active, time.perf_counter() - started)
        statistics.add(accepted, active, num_fed)
        yield min(done)
    batch.check_finite()


def _draw_run(decoder: Decoder, batch: Batch, num_fed: int, length: int, row_length: int) -> None:
    """One pass: feed the known pixel and guesses after it, draw behind each, go on behind what agrees."""
    offsets = torch.arange(num_fed, device=batch.position.device)
    window = (batch.position.unsqueeze(1) + offsets).clamp_(max=batch.num_pixels - 1)
    fed = _guesses(batch.tokens, window, batch.guessed, row_length)
    drawn = batch.draw(decoder.feed(fed, window, length), window)
    batch.guessed.copy_(torch.maximum(batch.guessed, batch.position + num_fed))
    agrees = (drawn[:, :-1] == fed[:, 1:]).cumprod(dim=1)
    batch.position.add_(1 + agrees.sum(dim=1)).clamp_(max=batch.num_pixels)


def _guesses(
    tokens: Int64[Tensor, "t1 b"], window: Int64[Tensor, "b n"], guessed: Int64[Tensor, " b"], row_length: int
) -> Int64[Tensor, "b n"]:
    """What to feed at the positions of the window: what was drawn there, or else the nearest pixel above that was."""
    rows_up = torch.div(window - 1 - guessed.unsqueeze(1), row_length, rounding_mode="floor") + 1
    source = torch.where(rows_up > 0, (window - rows_up * row_length).clamp_min(1), window)
    return tokens.gather(0, source.t()).t().contiguous()
