"""The number of threads of a step: tuned by measuring, because it does not change the results.

The threads synchronise several times per block. On an idle machine two of them are nearly twice as fast as one. On a
busy machine each barrier waits for a thread that lost its core: small models took up to 200 times as long.
"""

import statistics

_TRIAL_STEPS = 3  # per number of threads, in each trial
# End a trial when a step with all threads takes this many times as long as with one, and at least this long.
_GIVE_UP_RATIO, _GIVE_UP_S = 4.0, 0.02
_SHORT_STEP_S = 2e-4  # do not try more threads for shorter steps: little to gain, and a barrier may take long
_MIN_INTERVAL, _MAX_INTERVAL = 64, 1024  # steps between trials; the interval doubles while the result is the same


class ThreadCountTuner:
    """Chooses between one thread and all, whichever was faster in the latest trial."""

    def __init__(self, max_threads: int) -> None:
        self.best = max_threads
        self._choices = (1, max_threads) if max_threads > 1 else (1,)
        self._interval = _MIN_INTERVAL
        self._start_trial()

    def choose(self) -> int:
        """Return the number of threads of the next step."""
        if self._steps_left:
            return self.best
        return next(choice for choice, seconds in self._seconds.items() if len(seconds) < _TRIAL_STEPS)

    def observe(self, num_threads: int, seconds: float) -> None:
        """Record the duration of a step."""
        if self._steps_left:
            self._steps_left -= 1
            if not self._steps_left:
                self._start_trial()
            return
        self._seconds[num_threads].append(seconds)
        single, multi = self._seconds[1], self._seconds[self._choices[-1]]
        gives_up = multi and seconds > max(_GIVE_UP_S, _GIVE_UP_RATIO * statistics.median(single))
        is_short = len(single) == _TRIAL_STEPS and statistics.median(single) < _SHORT_STEP_S
        if gives_up or is_short or len(multi) == _TRIAL_STEPS:
            self._end_trial()

    def _start_trial(self) -> None:
        self._seconds: dict[int, list[float]] = {choice: [] for choice in self._choices}
        self._steps_left = 0  # until the next trial

    def _end_trial(self) -> None:
        medians = {choice: statistics.median(seconds) for choice, seconds in self._seconds.items() if seconds}
        before, self.best = self.best, min(medians, key=lambda choice: medians[choice])
        self._interval = min(2 * self._interval, _MAX_INTERVAL) if self.best == before else _MIN_INTERVAL
        self._steps_left = self._interval
