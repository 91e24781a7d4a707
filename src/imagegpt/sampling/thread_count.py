"""How many threads compute a step: found out by the clock, since results do not depend on it.

Threads meet several times a block. On a quiet machine two of them are nearly twice as fast as one. Beside other
programs each meeting waits for a thread that has lost its core; small models were seen to take 200 times as long.
"""

import statistics

_TRIAL = 3  # steps with each number of threads, after which they are compared
_FIRST_PATIENCE, _LAST_PATIENCE = 64, 1024  # steps until they are compared again, which double while nothing changes


class ThreadCount:
    """Chooses between one thread and all, whichever took less time lately.

    Args:
        most: threads there are.
    """

    def __init__(self, most: int) -> None:
        self.best, self._numbers = most, (most, 1) if most > 1 else (1,)
        self._patience = _FIRST_PATIENCE
        self._begin_trial()

    def choose(self) -> int:
        """For the next step."""
        for number, seconds in self._seconds.items():
            if len(seconds) < _TRIAL:
                return number
        return self.best

    def observe(self, num_threads: int, seconds: float) -> None:
        """What a step took."""
        seen = self._seconds[num_threads]
        if len(seen) < _TRIAL:
            seen.append(seconds)
            if all(len(one) == _TRIAL for one in self._seconds.values()):
                self._settle()
            return
        self._left -= 1
        if not self._left:
            self._begin_trial()

    def _begin_trial(self) -> None:
        self._seconds: dict[int, list[float]] = {number: [] for number in self._numbers}

    def _settle(self) -> None:
        before, self.best = self.best, min(self._numbers, key=lambda number: statistics.median(self._seconds[number]))
        self._patience = min(2 * self._patience, _LAST_PATIENCE) if self.best == before else _FIRST_PATIENCE
        self._left = self._patience
