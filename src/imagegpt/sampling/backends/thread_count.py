"""How many threads compute a step: found out by the clock, since results do not depend on it.

Threads meet several times a block. On a quiet machine two of them are nearly twice as fast as one. Beside other
programs each meeting waits for a thread that has lost its core; small models were seen to take 200 times as long.
"""

import statistics

_TRIAL = 3  # steps with each number of threads, after which they are compared
_HOPELESS, _HOPELESS_S = 4.0, 0.02  # of all threads: ends a trial, as times one thread's and in all
_SHORT_S = 2e-4  # below which a step of one thread is not tried with more: nothing to gain, and waiting may take long
_FIRST_PATIENCE, _LAST_PATIENCE = 64, 1024  # steps until they are compared again, which double while nothing changes


class ThreadCount:
    """Chooses between one thread and all, whichever took less time lately.

    Args:
        most: threads there are.
    """

    def __init__(self, most: int) -> None:
        self.best = most
        self._numbers = (1, most) if most > 1 else (1,)
        self._patience = _FIRST_PATIENCE
        self._begin_trial()

    def choose(self) -> int:
        """For the next step."""
        return self.best if self._left else next(n for n, seen in self._seconds.items() if len(seen) < _TRIAL)

    def observe(self, num_threads: int, seconds: float) -> None:
        """What a step took."""
        if self._left:
            self._left -= 1
            if not self._left:
                self._begin_trial()
            return
        self._seconds[num_threads].append(seconds)
        alone, together = self._seconds[1], self._seconds[self._numbers[-1]]
        is_hopeless = together and seconds > max(_HOPELESS_S, _HOPELESS * statistics.median(alone))
        is_short = len(alone) == _TRIAL and statistics.median(alone) < _SHORT_S
        if is_hopeless or is_short or len(together) == _TRIAL:
            self._settle()

    def _begin_trial(self) -> None:
        self._seconds: dict[int, list[float]] = {number: [] for number in self._numbers}
        self._left = 0  # steps until the next trial

    def _settle(self) -> None:
        medians = {number: statistics.median(seen) for number, seen in self._seconds.items() if seen}
        before, self.best = self.best, min(medians, key=lambda number: medians[number])
        self._patience = min(2 * self._patience, _LAST_PATIENCE) if self.best == before else _FIRST_PATIENCE
        self._left = self._patience
