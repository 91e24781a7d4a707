"""The training loop, on plain torch.

What is random in step s is a function of (seed, s), see `order`; everything else that a run is made of is in its
checkpoints. So a run that is killed and started again ends in the same bits, on a CPU and with one number of processes.

Axis letters: B images of a step.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from imagegpt.training.checkpoints import Checkpoints
from imagegpt.training.feed import Steps, feed
from imagegpt.training.objectives import Batch, Loss
from imagegpt.training.optimization import AveragedWeights, build_optimizers, learning_rate, whole
from imagegpt.training.order import dropout_seed
from imagegpt.training.parallelism import autocast, prepare, synchronised
from imagegpt.training.recipes import Recipe
from imagegpt.training.world import World

_RECENT_STEPS = 100  # whose mean loss a spike is measured against

Metrics = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is told after each step.

    Attributes:
        step: steps done, from 1.
        metrics: of the step's images, dropout on; "total" is what is minimised.
        validation: of the averaged weights, if this step ended with a validation.
        learning_rate: of this step.
        grad_norm: before it was shortened.
        elapsed_s: since this process began to train.
        images: seen since then.
    """

    step: int
    metrics: Metrics
    validation: Metrics | None
    learning_rate: float
    grad_norm: float
    elapsed_s: float = 0.0
    images: int = 0


@dataclass
class Progress:
    """What a run has come to, beside its tensors; goes through JSON.

    Attributes:
        step: steps done.
        best_step: after which validation was best.
        best: what it was then; "total" is infinite before the first.
        last: the last validation.
        worse: validations since.
        skipped: by how many steps the order of the images is ahead, because spikes were stepped over.
        rollbacks: spikes so far.
        recent: losses of the last steps.
        trained_s: seconds that all processes before this one trained.
    """

    step: int = 0
    best_step: int = 0
    best: Metrics = field(default_factory=lambda: {"total": math.inf})
    last: Metrics = field(default_factory=dict)
    worse: int = 0
    skipped: int = 0
    rollbacks: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT_STEPS))
    trained_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {**asdict(self), "recent": list(self.recent)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Progress":
        """From a checkpoint."""
        return cls(**{**content, "recent": deque(content["recent"], maxlen=_RECENT_STEPS)})


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended: "done", "stopped" by a signal, or "early" because validation got no better."""

    how: Literal["done", "stopped", "early"]
    progress: Progress


class Trainer:
    """A run: a model, an objective, images, and where checkpoints go.

    Args:
        loss: the model, on any device, with its objective; the model is changed in place.
        recipe: what to do.
        world: the processes that do it.
        steps: the batches of each step.
        validate: metrics of the model as it is, from all processes; called with the averaged weights in place.
        checkpoints: where they go; None saves none, and cannot step over spikes.
        on_validation: called after each validation, on every process, the averaged weights still in place, with
            the metrics and whether they are the best so far.
        on_step: called after each step, on every process.
        should_stop: asked after each step whether to save and end.
    """

    def __init__(
        self,
        loss: Loss,
        recipe: Recipe,
        world: World,
        steps: Steps,
        *,
        validate: Callable[[], Metrics],
        checkpoints: Checkpoints | None = None,
        on_validation: Callable[[Metrics, bool], None] = lambda *_: None,
        on_step: Callable[[Step], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._recipe, self._world, self._steps = recipe, world, steps
        self._validate, self._checkpoints = validate, checkpoints
        self._on_validation, self._on_step, self._should_stop = on_validation, on_step, should_stop
        self._loss, self._model = prepare(loss, recipe.training, world), loss.model
        self._optimizers = build_optimizers(self._model, recipe.training)
        self.average = AveragedWeights(self._model, recipe.training.average_decay)
        self.progress = Progress()

    def resume(self) -> bool:
        """Go on from the newest checkpoint that is whole; False if there is none."""
        path = None if self._checkpoints is None else self._checkpoints.newest()
        if path is None:
            return False
        self._load(path)
        return True

    def run(self) -> Outcome:
        """Train to the end, or until there is a reason to stop; then the last checkpoint is where it ended.

        Raises: FloatingPointError if the loss is no longer finite, or spikes too often.
        """
        watch, num_steps, progress = self._recipe.watch, self._recipe.training.num_steps, self.progress
        started, before_s, first = time.perf_counter(), progress.trained_s, progress.step
        how = self._reason_to_stop()  # a run that ended early does not go on when it is started again
        if how == "done" and watch.spike_nats is not None and progress.step == 0:
            self._save()  # what a spike may lead back to
        with torch.random.fork_rng():
            batches = self._batches()
            while self.progress.step < num_steps and how == "done":
                step = self._step(next(batches))
                if step is None:
                    batches = self._batches()
                    continue
                elapsed_s = time.perf_counter() - started
                self.progress.trained_s = before_s + elapsed_s
                self._on_step(replace(step, elapsed_s=elapsed_s, images=self._images_since(first)))
                how = self._reason_to_stop()
                if how != "done" or step.step % watch.checkpoint_every == 0 or step.step == num_steps:
                    self._save()
        self._model.eval()
        return Outcome(how=how, progress=self.progress)

    def _step(self, parts: Sequence[Batch]) -> Step | None:
        """One update and what belongs to it; None if the loss spiked, and the run was taken back."""
        recipe, number = self._recipe, self.progress.step
        metrics = self._gradients(parts)
        if self._is_spike(metrics["total"]):
            self._step_over(metrics["total"])
            return None
        rate = learning_rate(number, recipe.training)
        for group in (group for optimizer in self._optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        grad_norm = clip_grad_norm_(self._model.parameters(), recipe.training.max_grad_norm)
        for optimizer in self._optimizers:
            optimizer.step()
        self.average.update(number)
        self.progress.step = number + 1
        self.progress.recent.append(metrics["total"])
        validates = (
            self.progress.step % recipe.watch.validate_every == 0 or self.progress.step == recipe.training.num_steps
        )
        return Step(
            step=self.progress.step,
            metrics=metrics,
            validation=self._validation() if validates else None,
            learning_rate=rate,
            grad_norm=float(whole(grad_norm)),
        )

    def _gradients(self, parts: Sequence[Batch]) -> Metrics:
        """The gradients of a step, summed up in the weights, and the metrics of all its images."""
        recipe, device = self._recipe.training, self._world.device
        self._model.train()
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        sums: dict[str, Tensor] = {}
        for index, part in enumerate(parts):
            # Seeded anew each time, so that dropout depends on nothing before it.
            torch.manual_seed(dropout_seed(recipe.seed, self._order(), self._world.rank, index))
            with synchronised(self._loss, is_last=index == len(parts) - 1):
                with autocast(device, recipe.precision):
                    losses = self._loss(part.to(device))
                (losses["total"] / len(parts)).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach()
        values = self._world.sum(torch.stack(list(sums.values()))) / (len(parts) * self._world.size)
        return dict(zip(sums, values.tolist(), strict=True))

    def _validation(self) -> Metrics:
        self._model.eval()
        with self.average.in_place():
            scores, progress = self._validate(), self.progress
            is_best = scores["total"] < progress.best["total"]
            progress.last, progress.worse = scores, 0 if is_best else progress.worse + 1
            if is_best:
                progress.best, progress.best_step = scores, progress.step
            self._on_validation(scores, is_best)
        return scores

    def _reason_to_stop(self) -> Literal["done", "stopped", "early"]:
        """Why the run shall not go on; "done" is none."""
        patience = self._recipe.watch.patience
        if self._world.any(self._should_stop()):
            return "stopped"
        return "early" if patience is not None and self.progress.worse >= patience else "done"

    def _is_spike(self, loss: float) -> bool:
        limit, recent = self._recipe.watch.spike_nats, self.progress.recent
        if limit is None:
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss of step {self.progress.step + 1} is {loss}: lower training.learning_rate, or set "
                    "watch.spike_nats to step over such images"
                )
            return False
        full = len(recent) == recent.maxlen
        return not math.isfinite(loss) or (full and loss > sum(recent) / len(recent) + limit)

    def _step_over(self, loss: float) -> None:
        """Go back to the last checkpoint, and on with the images that come after those of the spike."""
        spiked, rollbacks = self.progress.step, self.progress.rollbacks + 1
        ahead = self.progress.skipped + spiked + 1
        path = None if self._checkpoints is None else self._checkpoints.newest()
        if rollbacks > self._recipe.watch.max_rollbacks or path is None:
            raise FloatingPointError(
                f"the loss of step {spiked + 1} is {loss:.4g}, spike number {rollbacks}, of which "
                f"watch.max_rollbacks allows {self._recipe.watch.max_rollbacks}: lower training.learning_rate"
            )
        best, best_step = self.progress.best, self.progress.best_step
        self._load(path)
        # The best weights so far were kept, even if the steps that led to them are undone.
        self.progress.best, self.progress.best_step = best, best_step
        self.progress.rollbacks, self.progress.skipped = rollbacks, ahead - self.progress.step

    def _order(self) -> int:
        """The number of the next step in the order of the images."""
        return self.progress.step + self.progress.skipped

    def _batches(self) -> Iterator[list[Batch]]:
        last = self._recipe.training.num_steps + self.progress.skipped
        workers = self._recipe.data.num_workers
        return feed(self._steps, self._order(), last, num_workers=workers, pin_memory=self._world.device.type == "cuda")

    def _images_since(self, step: int) -> int:
        return (self.progress.step - step) * self._recipe.training.batch_size

    def _save(self) -> None:
        if self._checkpoints is not None:
            progress = self.progress.as_json()
            self._checkpoints.save(self.progress.step, self._model, self._optimizers, self.average.weights, progress)

    def _load(self, path: Path) -> None:
        assert self._checkpoints is not None, "it is where the path comes from"
        content = self._checkpoints.load(path, self._model, self._optimizers, self.average.weights)
        self.progress = Progress.from_json(content)
