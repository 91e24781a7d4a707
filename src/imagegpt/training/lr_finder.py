"""Search for the learning rate as the paper did: the largest that does not hurt validation, found by short runs.

    OUT/rates.json           the rates that were tried, with their validation losses
    OUT/rates.png            a picture of them
    OUT/data.json            identifies the images, as in a run
    OUT/broken-images.txt    images that were skipped, if there are any
    OUT/trial/               the run of the rate that is being tried

The paper compared whole runs. Short runs prefer somewhat higher rates than long ones. Everything else is as in the
recipe, with the warm-up and the schedule shortened in proportion.
"""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from imagegpt.common import ranges
from imagegpt.data.broken_images import BROKEN_FILE, BrokenImage, write_list
from imagegpt.data.identity import RECORD_FILE, DataRecord
from imagegpt.figures.plots import learning_rate_plot, warn_on_failure
from imagegpt.files.atomic import atomic_write
from imagegpt.files.locks import LOCK_FILE, folder_lock
from imagegpt.files.versions import FORMAT_KEY, read_versioned_json
from imagegpt.training.callbacks import TrainingCallback
from imagegpt.training.distributed import DistributedContext
from imagegpt.training.recipe import Recipe
from imagegpt.training.recipe_io import parse_recipe_yaml
from imagegpt.training.run import Run
from imagegpt.training.run_folder import check_out_path, incompatible_changes, remove_run_folder
from imagegpt.training.run_precision import resolve_precision

RATES_FORMAT = 1  # of rates.json

TRIALS_FILE, PICTURE_FILE, _TRIAL = "rates.json", "rates.png", "trial"
_ACTIVITY = "looks for a learning rate in"
TOLERANCE = 0.005  # relative to the best validation loss: a higher one is worse
_MAX_TRIALS = 12
_MIN_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class _Trials:
    """The contents of `rates.json`.

    Attributes:
        losses: by rate; written as text, because JSON has no infinity.
        recipe: of a trial, as YAML.
    """

    losses: dict[float, float]
    recipe: str


class LearningRateSearch:
    """A search in a folder; a search of the same recipe in it is resumed.

    Args:
        recipe: its learning rate is the first to try.
        out: the folder; created if it does not exist.
        context: the processes of the search.
        num_steps: of each trial; None is a tenth of the recipe's, but at least 100 if it has that many.
        force: start over if the folder holds a search, of any recipe. Files that no search wrote remain.
    Raises: ValueError or OSError, in one sentence, if the folder holds something else, another process uses it, or
        `num_steps` is larger than the recipe's.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        context: DistributedContext,
        *,
        num_steps: int | None = None,
        force: bool = False,
    ) -> None:
        all_steps = recipe.training.num_steps
        tenth = min(all_steps, max(_MIN_STEPS, all_steps // 10))
        self._steps = tenth if num_steps is None else ranges.STEPS.check("num_steps", num_steps)
        if self._steps > all_steps:
            raise ValueError(f"a trial of {self._steps} steps is longer than the run of {all_steps}: choose fewer")
        recorded = None if force else lambda: parse_recipe_yaml(_read(out / TRIALS_FILE).recipe, TRIALS_FILE)
        self._recipe, self.precision = resolve_precision(recipe, recorded, context)
        self.out, self._context = out, context
        self.losses: dict[float, float] = {}
        self.broken: Sequence[BrokenImage] = ()
        self._claim_folder(force)

    def next_rate(self) -> float | None:
        """Return the next rate to try; None if the answer is known.

        Raises: ValueError if there is still no answer after many trials.
        """
        rate = next_rate(self.losses, self._recipe.training.learning_rate)
        if rate is not None and len(self.losses) >= _MAX_TRIALS:
            raise ValueError(
                f"{len(self.losses)} rates from {min(self.losses):g} to {max(self.losses):g} did not settle it, see "
                f"{self.out / TRIALS_FILE}: start from another training.learning_rate"
            )
        return rate

    @property
    def best_rate(self) -> float:
        """The largest rate tried whose loss is within `TOLERANCE` of the best."""
        return largest_good_rate(self.losses)

    def recipe_for(self, rate: float) -> Recipe:
        """Return the recipe of a trial."""
        training, steps = self._recipe.training, self._steps
        warmup = round(training.warmup_steps * steps / training.num_steps)
        return replace(
            self._recipe,
            training=replace(training, num_steps=steps, learning_rate=rate, warmup_steps=min(warmup, steps - 1)),
            monitoring=replace(
                self._recipe.monitoring,
                validate_every=steps,
                checkpoint_every=max(1, min(self._recipe.monitoring.checkpoint_every, steps)),
                patience=None,
                spike_nats=None,
                samples=0,
                trackers=(),
            ),
        )

    def try_rate(self, rate: float, callback: TrainingCallback | None = None) -> float | None:
        """Train with a rate, record its validation loss at the end and return it; None if the run was stopped.

        Args:
            rate: from `next_rate`.
            callback: see `Run`.
        """
        with self._lock():
            recipe = self.recipe_for(rate)
            run = Run(recipe, self.out / _TRIAL, self._context, callback=callback)
            self._check_data(run.data.record)
            if self._context.is_main and run.data.broken:
                write_list(self.out / BROKEN_FILE, run.data.broken)
            self.broken = run.data.broken
            try:
                if run.train() == "stopped":
                    return None
                loss = run.state.last["loss"]
            except FloatingPointError:
                loss = math.inf
            self.losses[rate] = loss if math.isfinite(loss) else math.inf
            self._context.barrier()
            if self._context.is_main:
                self._write()
                remove_run_folder(self.out / _TRIAL)
            self._context.barrier()
            return loss

    def _lock(self) -> AbstractContextManager[None]:
        return folder_lock(self.out, _ACTIVITY) if self._context.is_main else nullcontext()

    def _claim_folder(self, force: bool) -> None:
        out, file = self.out, self.out / TRIALS_FILE
        check_out_path(out)
        if out.is_dir() and not file.is_file() and any(not path.name.startswith(".") for path in out.iterdir()):
            raise FileExistsError(f"{out} exists and holds no search for a rate: choose another path")
        recorded = None
        if not force and file.is_file():
            recorded = _read(file)
        elif file.is_file() and not (out / LOCK_FILE).is_file():  # people have files of this name, too
            raise FileExistsError(f"{out} exists and holds no search for a rate: choose another path")
        if recorded is not None and not self._matches(parse_recipe_yaml(recorded.recipe, str(file))):
            raise ValueError(f"{out} holds the search of another recipe: choose another path, or --force")
        self._context.barrier()  # until all have checked
        if recorded is not None:
            self.losses = dict(recorded.losses)
        if self._context.is_main:
            out.mkdir(exist_ok=True)
            with self._lock():
                if force:
                    remove_run_folder(out / _TRIAL)
                    (out / BROKEN_FILE).unlink(missing_ok=True)
                if recorded is None:
                    self._write()
        self._context.barrier()

    def _matches(self, recorded: Recipe) -> bool:
        """Whether the search of a recorded trial recipe is this one."""
        now = self.recipe_for(self._recipe.training.learning_rate)
        same_length = now.training.num_steps == recorded.training.num_steps
        return same_length and not any(incompatible_changes(recorded, now))

    def _check_data(self, record: DataRecord) -> None:
        """Check that all rates are tried on the same images."""
        recorded = DataRecord.read(self.out)
        if self.losses and (recorded is None or recorded.differences(record)):
            changes = f"{RECORD_FILE} is gone"
            if recorded is not None:
                changes = f"{', '.join(recorded.differences(record))} changed"
            raise ValueError(f"{self.out} holds a search with other data: {changes}; choose another path, or --force")
        self._context.barrier()
        if self._context.is_main:
            record.write(self.out)

    def _write(self) -> None:
        recipe = self.recipe_for(self._recipe.training.learning_rate)
        losses = {str(rate): str(loss) for rate, loss in sorted(self.losses.items())}  # JSON has no infinity
        fields = {FORMAT_KEY: RATES_FORMAT, "losses": losses, "recipe": recipe.to_yaml()}
        content = json.dumps(fields, indent=2) + "\n"
        atomic_write(self.out / TRIALS_FILE, content.encode(), "the rates that were tried")
        finite = [(rate, loss) for rate, loss in sorted(self.losses.items()) if math.isfinite(loss)]
        if finite:
            with warn_on_failure("picture of the rates"):
                picture = learning_rate_plot(finite, self.best_rate)
                atomic_write(self.out / PICTURE_FILE, picture, "the picture of the rates")


def largest_good_rate(losses: Mapping[float, float]) -> float:
    """Return the largest rate whose loss is within `TOLERANCE` of the best; the smallest rate if all diverged."""
    best = min(losses.values())
    if not math.isfinite(best):
        return min(losses)
    return max(rate for rate, loss in losses.items() if loss <= best + TOLERANCE * abs(best))


def next_rate(losses: Mapping[float, float], first: float) -> float | None:
    """Return the next rate to try: twice or half the best so far, until both are known.

    Args:
        losses: of the rates tried so far.
        first: the rate to start from.
    Returns: a rate; None if both neighbours of the best are known.
    """
    if not losses:
        return first
    best = largest_good_rate(losses)
    diverged = not math.isfinite(losses[best])
    neighbours = [rate for rate in (2 * best, best / 2) if rate not in losses and rate in ranges.LEARNING_RATE]
    return next((rate for rate in neighbours if not (diverged and rate > best)), None)


def _read(file: Path) -> _Trials:
    remedy = "choose another path, or start over with --force"
    return read_versioned_json(file, _Trials, RATES_FORMAT, remedy=remedy)
