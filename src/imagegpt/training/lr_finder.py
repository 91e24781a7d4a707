"""The paper's search for the learning rate: the largest that does no harm to validation, found by short runs.

    OUT/rates.json   the rates that were tried, with their validation losses
    OUT/rates.png    a picture of them
    OUT/data.json    which images they are of, as in a run
    OUT/trial/       the run of the rate that is being tried

The paper compared whole runs. Short ones like somewhat higher rates than long ones do; all else is as in the recipe,
with the warm-up and the cosine shortened alike.
"""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from imagegpt.common import ranges
from imagegpt.common.precision import Precision
from imagegpt.data.identity import RECORD_FILE, DataRecord
from imagegpt.figures.plots import rate_picture
from imagegpt.files.atomic import atomic_write
from imagegpt.files.locks import LOCK_FILE, locked
from imagegpt.files.versions import FORMAT_KEY, read_own
from imagegpt.training.callbacks import failing_quietly
from imagegpt.training.distributed import World
from imagegpt.training.recipe import Recipe
from imagegpt.training.recipe_io import recipe_from_text
from imagegpt.training.run import Run, Told
from imagegpt.training.run_folder import check_place, defining_changes, remove_run_folder
from imagegpt.training.run_precision import precision_in_text, with_precision

RATES_FORMAT = 1  # of rates.json

TRIALS_FILE, PICTURE_FILE, _TRIAL = "rates.json", "rates.png", "trial"
_DOING = "looks for a learning rate in"
HARM = 0.005  # a validation loss worse than the best by more than this share of it
_MOST_TRIALS = 12
_LEAST_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class _Trials:
    """The contents of `rates.json`.

    Attributes:
        losses: of the rates that were tried, both as text, because JSON has no infinity.
        recipe: of a trial.
    """

    losses: dict[float, float]
    recipe: str


class RateSearch:
    """A search in a folder; the same recipe in the same folder goes on.

    Args:
        recipe: whose rate is where the search begins.
        out: the folder.
        world: the processes that do it.
        num_steps: of each trial; None is a tenth of the recipe's, at least 100 if it has so many.
        force: start over if the folder holds a search, of whatever recipe. Files that no search wrote stay.
    Raises: ValueError or OSError, in one sentence, if the folder has no place for it, another process is at work in it,
        or the trial cannot be so short.
    """

    def __init__(
        self, recipe: Recipe, out: Path, world: World, *, num_steps: int | None = None, force: bool = False
    ) -> None:
        all_steps = recipe.training.num_steps
        tenth = min(all_steps, max(_LEAST_STEPS, all_steps // 10))
        self._steps = tenth if num_steps is None else ranges.STEPS.check("num_steps", num_steps)
        if self._steps > all_steps:
            raise ValueError(f"a trial of {self._steps} steps is longer than the run of {all_steps}: choose fewer")
        recorded = None if force else _recorded_precision(out / TRIALS_FILE)
        self._recipe, self.precision = with_precision(recipe, recorded, world)
        self._out, self._world = out, world
        self.losses: dict[float, float] = {}
        self._claim_folder(force)

    def next_rate(self) -> float | None:
        """What to try next; None if the answer is known.

        Raises: ValueError if so many rates were tried that there is none.
        """
        rate = next_rate(self.losses, self._recipe.training.learning_rate)
        if rate is not None and len(self.losses) >= _MOST_TRIALS:
            raise ValueError(
                f"{len(self.losses)} rates from {min(self.losses):g} to {max(self.losses):g} have no largest one that "
                f"does no harm, see {self._out / TRIALS_FILE}: begin elsewhere, with another training.learning_rate"
            )
        return rate

    @property
    def chosen(self) -> float:
        """The largest rate of those tried that does no harm."""
        return largest_without_harm(self.losses)

    def recipe_for(self, rate: float) -> Recipe:
        """The recipe of a trial."""
        training, steps = self._recipe.training, self._steps
        warmup = round(training.warmup_steps * steps / training.num_steps)
        return replace(
            self._recipe,
            training=replace(training, num_steps=steps, learning_rate=rate, warmup_steps=min(warmup, steps - 1)),
            watch=replace(
                self._recipe.watch,
                validate_every=steps,
                checkpoint_every=max(1, min(self._recipe.watch.checkpoint_every, steps)),
                patience=None,
                spike_nats=None,
                samples=0,
                trackers=(),
            ),
        )

    def try_rate(
        self,
        rate: float,
        *,
        on_step: Callable[[Told], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> float | None:
        """Train with a rate, and keep the validation loss at the end; None if it was stopped.

        Args:
            rate: of `next_rate`.
            on_step: called in the main process after each step.
            should_stop: asked after each step.
        """
        with self._locked():
            return self._trained(rate, on_step, should_stop)

    def _trained(self, rate: float, on_step: Callable[[Told], None], should_stop: Callable[[], bool]) -> float | None:
        recipe = self.recipe_for(rate)
        run = Run(recipe, self._out / _TRIAL, self._world, on_step=on_step, should_stop=should_stop)
        self._check_data(run.data.record)
        try:
            if run.train().how == "stopped":
                return None
            loss = run.progress.last["total"]
        except FloatingPointError:
            loss = math.inf
        self.losses[rate] = loss if math.isfinite(loss) else math.inf
        self._world.wait()
        if self._world.is_main:
            self._write()
            remove_run_folder(self._out / _TRIAL)
        self._world.wait()
        return loss

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self._out, _DOING) if self._world.is_main else nullcontext()

    def _claim_folder(self, force: bool) -> None:
        out, file = self._out, self._out / TRIALS_FILE
        check_place(out)
        if out.is_dir() and not file.is_file() and any(not path.name.startswith(".") for path in out.iterdir()):
            raise FileExistsError(f"{out} exists and holds no search for a rate: choose another place")
        there = None
        if not force and file.is_file():
            there = _read(file)
        elif file.is_file() and not (out / LOCK_FILE).is_file():  # people may call a file of their own so
            raise FileExistsError(f"{out} exists and holds no search for a rate: choose another place")
        if there is not None and not self._goes_on_with(recipe_from_text(there.recipe, str(file))):
            raise ValueError(f"{out} holds the search of another recipe: choose another place, or --force")
        self._world.wait()  # until all have looked at it
        if there is not None:
            self.losses = dict(there.losses)
        if self._world.is_main:
            out.mkdir(exist_ok=True)
            with self._locked():
                if force:
                    remove_run_folder(out / _TRIAL)
                if there is None:
                    self._write()
        self._world.wait()

    def _goes_on_with(self, there: Recipe) -> bool:
        now = self.recipe_for(self._recipe.training.learning_rate)
        same_length = now.training.num_steps == there.training.num_steps
        return same_length and not any(defining_changes(there, now))

    def _check_data(self, record: DataRecord) -> None:
        """See that all rates are tried with the same images."""
        there = DataRecord.read(self._out)
        if self.losses and (there is None or there.differences(record)):
            told = f"{RECORD_FILE} is gone" if there is None else f"{', '.join(there.differences(record))} changed"
            raise ValueError(f"{self._out} holds a search with other data: {told}; choose another place, or --force")
        self._world.wait()
        if self._world.is_main:
            record.write(self._out)

    def _identity(self) -> str:
        return self.recipe_for(self._recipe.training.learning_rate).resolved()

    def _write(self) -> None:
        losses = {str(rate): str(loss) for rate, loss in sorted(self.losses.items())}  # JSON has no infinity
        fields = {FORMAT_KEY: RATES_FORMAT, "losses": losses, "recipe": self._identity()}
        content = json.dumps(fields, indent=2) + "\n"
        atomic_write(self._out / TRIALS_FILE, content.encode(), "the rates that were tried")
        finite = [(rate, loss) for rate, loss in sorted(self.losses.items()) if math.isfinite(loss)]
        if finite:
            with failing_quietly("picture of the rates"):
                picture = rate_picture(finite, self.chosen)
                atomic_write(self._out / PICTURE_FILE, picture, "the picture of the rates")


def largest_without_harm(losses: Mapping[float, float]) -> float:
    """The largest rate whose loss is as good as the best, within `HARM`; the smallest if all diverged."""
    best = min(losses.values())
    if not math.isfinite(best):
        return min(losses)
    return max(rate for rate, loss in losses.items() if loss <= best + HARM * abs(best))


def next_rate(losses: Mapping[float, float], first: float) -> float | None:
    """Which rate to try: twice and half the one that looks right, until both are known.

    Args:
        losses: of the rates tried so far.
        first: where to begin.
    Returns: a rate, or None if the largest without harm has a harmful one above it, and none that is better below.
    """
    if not losses:
        return first
    chosen = largest_without_harm(losses)
    diverged = not math.isfinite(losses[chosen])
    several = [rate for rate in (2 * chosen, chosen / 2) if rate not in losses and ranges.LEARNING_RATE.holds(rate)]
    return next((rate for rate in several if not (diverged and rate > chosen)), None)


def _recorded_precision(file: Path) -> Precision | None:
    """What a search was begun in; what is damaged is told later."""
    try:
        return precision_in_text(_read(file).recipe)
    except (OSError, ValueError):
        return None


def _read(file: Path) -> _Trials:
    remedy = "choose another place, or start over with --force"
    return read_own(file, _Trials, RATES_FORMAT, remedy=remedy)
