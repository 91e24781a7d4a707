"""How many pixels parallel decoding feeds per pass: tuned by measuring throughput while sampling."""

import math

_LENGTHS = (1, 4, 8, 16, 32, 64)
_INITIAL_LENGTH = 16
_TRIAL_PASSES = 8  # consecutive passes of a trial: the quality of drafts depends on the length of the passes before
_WARMUP_PASSES = 2  # of these, not measured: their drafts come from passes of another length
_MIN_INTERVAL, _MAX_INTERVAL = 16, 256  # passes between trials of the neighbouring lengths; the interval doubles
_DECAY, _TRIAL_DECAY = 0.97, 0.7  # weight of earlier passes after one more, and after another trial of their length
_NUM_STANDARD_ERRORS = 2.0  # by which a length must be faster to replace the best


class _Throughput:
    """The throughput of one length, from exponentially decayed sums over its passes."""

    def __init__(self) -> None:
        self._sums = [0.0] * 5  # of 1, accepted pixels, their squares, seconds, their squares

    def add(self, accepted: float, seconds: float) -> None:
        """Add a pass."""
        values = (1, accepted, accepted**2, seconds, seconds**2)
        self._sums = [_DECAY * total + value for total, value in zip(self._sums, values, strict=True)]

    def decay(self, factor: float) -> None:
        """Multiply the weight of the passes so far."""
        self._sums = [factor * total for total in self._sums]

    @property
    def was_measured(self) -> bool:
        """Whether there was a pass."""
        return self._sums[0] > 0

    @property
    def pixels_per_second(self) -> float:
        """Accepted pixels per second, 0 before the first pass."""
        _, accepted, _, seconds, _ = self._sums
        return accepted / seconds if seconds else 0.0

    @property
    def standard_error(self) -> float:
        """The standard error of `pixels_per_second`."""
        passes, accepted, accepted_squared, seconds, seconds_squared = self._sums
        if not seconds:
            return 0.0
        relative_variances = accepted_squared / accepted**2 - 1 / passes, seconds_squared / seconds**2 - 1 / passes
        return self.pixels_per_second * math.sqrt(sum(max(0.0, variance) for variance in relative_variances))

    def is_faster_than(self, other: "_Throughput") -> bool:
        """Whether this is faster by a significant margin."""
        error = math.hypot(self.standard_error, other.standard_error)
        return self.was_measured and self.pixels_per_second - other.pixels_per_second > _NUM_STANDARD_ERRORS * error


class DraftLengthTuner:
    """Chooses the number of positions per pass that samples the most pixels per second.

    This is hill climbing: the tuner uses the best length so far, tries its neighbours from time to time, and moves when
    one of them is significantly faster. The number of accepted drafts varies a lot between passes, so significance
    takes many passes, the more the closer the two lengths are. The images do not depend on the length.

    Args:
        max_length: pixels of an image.
    """

    def __init__(self, max_length: int) -> None:
        self.lengths = [length for length in _LENGTHS if length <= max_length]
        self.best = min(_INITIAL_LENGTH, self.lengths[-1])
        self._throughputs = {length: _Throughput() for length in self.lengths}
        self._length, self._passes_left, self._warmup_left = self.best, _TRIAL_PASSES, _WARMUP_PASSES
        self._interval, self._try_longer = _MIN_INTERVAL, True

    def choose(self) -> int:
        """Return the length of the next pass."""
        if not self._passes_left:
            self._start(*self._next())
        self._passes_left -= 1
        return self._length

    def observe(self, length: int, accepted: float, seconds: float) -> None:
        """Record a pass.

        Args:
            length: positions fed.
            accepted: pixels accepted per image, on average.
        """
        if self._warmup_left:
            self._warmup_left -= 1
            return
        self._throughputs[length].add(accepted, seconds)
        if self._passes_left:
            return
        for neighbour in self._neighbours():
            if self._throughputs[neighbour].is_faster_than(self._throughputs[self.best]):
                self.best, self._interval = neighbour, _MIN_INTERVAL
                return

    def _next(self) -> tuple[int, int]:
        """The length to use next, and for how many passes."""
        neighbours = self._neighbours()
        for neighbour in neighbours:
            if not self._throughputs[neighbour].was_measured:
                return neighbour, _TRIAL_PASSES
        if not neighbours or self._length != self.best:
            passes = self._interval
            self._interval = min(2 * self._interval, _MAX_INTERVAL)
            return self.best, passes
        self._try_longer = not self._try_longer
        return neighbours[-1 if self._try_longer else 0], _TRIAL_PASSES

    def _start(self, length: int, passes: int) -> None:
        if length != self._length:
            self._warmup_left = _WARMUP_PASSES
            self._throughputs[length].decay(_TRIAL_DECAY if length != self.best else 1.0)
        self._length, self._passes_left = length, passes

    def _neighbours(self) -> list[int]:
        """The lengths next to the best, the shorter one first because it is cheaper to try."""
        index = self.lengths.index(self.best)
        return [length for length in self.lengths[max(0, index - 1) : index + 2] if length != self.best]
