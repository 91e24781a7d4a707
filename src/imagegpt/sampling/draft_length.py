"""How many pixels to feed in a pass of parallel decoding: found out by the clock."""

import math
from dataclasses import dataclass

_LENGTHS = (1, 4, 8, 16, 32, 64)
_FIRST_LENGTH = 16
_TRIAL = 8  # passes of a length in a row: drafts get as good as runs of that length make them
_SETTLING = 2  # of these, which live on drafts that runs of another length made, and are not counted
_FIRST_PATIENCE, _LAST_PATIENCE = 16, 256  # passes between trials of neighbouring lengths, which double
_MEMORY, _TRIAL_MEMORY = 0.97, 0.7  # what a pass counts after one more, and after another trial of its length
_SURE = 2.0  # standard errors by which a length has to be faster


@dataclass
class _Speed:
    """Fading sums over the passes of one length."""

    passes: float = 0.0
    accepted: float = 0.0
    accepted_squared: float = 0.0
    seconds: float = 0.0
    seconds_squared: float = 0.0

    def add(self, accepted: float, seconds: float) -> None:
        """Take a pass into account."""
        self.fade(_MEMORY)
        self.passes += 1
        self.accepted += accepted
        self.accepted_squared += accepted**2
        self.seconds += seconds
        self.seconds_squared += seconds**2

    def fade(self, memory: float) -> None:
        """Make the passes so far count less."""
        self.passes *= memory
        self.accepted *= memory
        self.accepted_squared *= memory
        self.seconds *= memory
        self.seconds_squared *= memory

    @property
    def pixels_per_second(self) -> float:
        """What counts."""
        return self.accepted / self.seconds if self.seconds else 0.0

    @property
    def error(self) -> float:
        """The standard error of pixels per second."""
        variances = [
            max(0.0, squared / total**2 - 1 / self.passes)
            for total, squared in ((self.accepted, self.accepted_squared), (self.seconds, self.seconds_squared))
            if total
        ]
        return self.pixels_per_second * math.sqrt(sum(variances))

    def is_faster_than(self, other: "_Speed") -> bool:
        """Whether that can hardly be chance."""
        error = math.hypot(self.error, other.error)
        return bool(self.passes) and self.pixels_per_second - other.pixels_per_second > _SURE * error


class DraftLength:
    """Chooses how many pixels to feed in a pass, by the clock: the length that gives most pixels a second.

    It climbs: a length is used until one of its neighbours, which are tried from time to time, has proved to be faster.
    How many drafts are right differs much from pass to pass, so proof needs passes, more of them the nearer the two.
    The images do not depend on it.

    Args:
        most: pixels of an image.
    """

    def __init__(self, most: int) -> None:
        self.lengths = [length for length in _LENGTHS if length <= most]
        self.best = min(_FIRST_LENGTH, self.lengths[-1])
        self._speeds = {length: _Speed() for length in self.lengths}
        self._length, self._left, self._unsettled = self.best, _TRIAL, _SETTLING
        self._patience, self._upwards = _FIRST_PATIENCE, True

    def choose(self) -> int:
        """The length of the next pass."""
        if not self._left:
            self._begin(*self._next())
        self._left -= 1
        return self._length

    def observe(self, length: int, accepted: float, seconds: float) -> None:
        """What a pass of some length gave.

        Args:
            length: positions fed.
            accepted: pixels of an image, on average.
            seconds: it took.
        """
        if self._unsettled:
            self._unsettled -= 1
            return
        self._speeds[length].add(accepted, seconds)
        if self._left:
            return
        for neighbour in self._neighbours():
            if self._speeds[neighbour].is_faster_than(self._speeds[self.best]):
                self.best, self._patience = neighbour, _FIRST_PATIENCE
                return

    def _next(self) -> tuple[int, int]:
        """Which length comes next, and for how many passes."""
        neighbours = self._neighbours()
        for neighbour in neighbours:
            if not self._speeds[neighbour].passes:
                return neighbour, _TRIAL
        if not neighbours or self._length != self.best:
            passes = self._patience
            self._patience = min(2 * self._patience, _LAST_PATIENCE)
            return self.best, passes
        self._upwards = not self._upwards
        return neighbours[-1 if self._upwards else 0], _TRIAL

    def _begin(self, length: int, passes: int) -> None:
        if length != self._length:
            self._unsettled = _SETTLING
            self._speeds[length].fade(_TRIAL_MEMORY if length != self.best else 1.0)
        self._length, self._left = length, passes

    def _neighbours(self) -> list[int]:
        """Of the best, the shorter one first: it costs less to try."""
        index = self.lengths.index(self.best)
        return [length for length in self.lengths[max(0, index - 1) : index + 2] if length != self.best]
