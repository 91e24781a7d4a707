"""The training loop, on plain torch.

What is random in step s is a function of (seed, s), see `order`; everything else that a run is made of is in its
checkpoints. So a run that is killed and started again ends in the same bits, on a CPU and with one number of processes.

A step whose loss or gradients are not finite never reaches the weights: the run ends, or is rolled back to its last
checkpoint and goes on with other images if `watch.spike_nats` is set. Weights that are not finite are never saved.

Axis letters: B images of a step.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from imagegpt.training.checkpoint import Checkpoints
from imagegpt.training.dataloader import Steps, feed
from imagegpt.training.distributed import World
from imagegpt.training.objectives import Batch, Loss
from imagegpt.training.optimizers import AveragedWeights, build_optimizers, learning_rate, local, whole
from imagegpt.training.parallelism import autocast, prepare, synchronised
from imagegpt.training.recipe import Recipe
from imagegpt.training.rng import dropout_seed
from imagegpt.training.run_state import Metrics, Progress


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
        checkpoints: where they go; None saves none, so that a spike ends the run.
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
        if self._checkpoints is None or path is None:
            return False
        self._load(path)
        self._checkpoints.remove_old(self.progress.step)  # which a process that was killed may have left half done
        return True

    def run(self) -> Outcome:
        """Train to the end, or until there is a reason to stop; then the last checkpoint is where it ended.

        Raises: FloatingPointError if loss, gradients or weights are no longer finite, or the loss spikes too often.
        """
        watch, num_steps, progress = self._recipe.watch, self._recipe.training.num_steps, self.progress
        started, before_s, first = time.perf_counter(), progress.trained_s, progress.step
        how = self._reason_to_stop()  # a run that ended early does not go on when it is started again
        if how == "done" and watch.spike_nats is not None and progress.step == 0:
            self._save()  # what a spike may roll back to
        with torch.random.fork_rng():
            batches = self._batches()
            while self.progress.step < num_steps and how == "done":
                step = self._step(next(batches))
                if step is None:
                    batches = self._batches()
                    continue
                elapsed_s = time.perf_counter() - started
                self.progress.trained_s = before_s + elapsed_s
                images = self._recipe.training.batch_size * (step.step - first)
                self._on_step(replace(step, elapsed_s=elapsed_s, images=images))
                how = self._reason_to_stop()
                is_due = how != "done" or step.step % watch.checkpoint_every == 0 or step.step == num_steps
                if is_due and not self._save():
                    batches = self._batches()
        self._model.eval()
        return Outcome(how=how, progress=self.progress)

    def _step(self, parts: Sequence[Batch]) -> Step | None:
        """One update and what belongs to it; None if the run was rolled back instead."""
        recipe, number = self._recipe, self.progress.step
        metrics = self._gradients(parts)
        if self._is_spike(metrics["total"]):
            self._roll_back(f"the loss of step {number + 1} is {metrics['total']:.4g}", self._order() + 1)
            return None
        grad_norm = float(whole(clip_grad_norm_(self._model.parameters(), recipe.training.max_grad_norm)))
        if not math.isfinite(grad_norm):  # the loss may be finite all the same; one update would spoil every weight
            self._roll_back(f"the gradients of step {number + 1} are not finite", self._order() + 1)
            return None
        rate = learning_rate(number, recipe.training)
        for group in (group for optimizer in self._optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        for optimizer in self._optimizers:
            optimizer.step()
        self.average.update(number)
        self.progress.step = done = number + 1
        self.progress.recent.append(metrics["total"])
        validates = done % recipe.watch.validate_every == 0 or done == recipe.training.num_steps
        validation = self._validation() if validates else None
        return Step(step=done, metrics=metrics, validation=validation, learning_rate=rate, grad_norm=grad_norm)

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
        if not math.isfinite(loss):
            return True
        return limit is not None and len(recent) == recent.maxlen and loss > sum(recent) / len(recent) + limit

    def _is_finite(self) -> bool:
        """Whether everything that a checkpoint holds is, on all processes."""
        moments = (value for one in self._optimizers for state in one.state.values() for value in state.values())
        tensors = [*self._model.parameters(), *self.average.weights.values(), *filter(torch.is_tensor, moments)]
        finite = torch.stack([local(one.detach()).isfinite().all() for one in tensors])
        return not self._world.any(not bool(finite.all()))

    def _roll_back(self, trouble: str, ahead: int) -> None:
        """Go back to the last checkpoint, and on with other images.

        Args:
            trouble: what happened, for the error.
            ahead: the number, in the order of the images, of the step whose images come next.
        Raises: FloatingPointError if the recipe does not ask for that, or not so often.
        """
        watch, rollbacks = self._recipe.watch, self.progress.rollbacks + 1
        if watch.spike_nats is None:
            raise FloatingPointError(
                f"{trouble}: lower training.learning_rate, or set watch.spike_nats to skip such images"
            )
        path = None if self._checkpoints is None else self._checkpoints.newest()
        if rollbacks > watch.max_rollbacks or path is None:
            raise FloatingPointError(
                f"{trouble}, spike number {rollbacks}, of which watch.max_rollbacks allows {watch.max_rollbacks}: "
                "lower training.learning_rate"
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

    def _save(self) -> bool:
        """Save a checkpoint; False if there was something in it that is not finite, and the run was rolled back."""
        if not self._is_finite():
            self._roll_back(f"the weights after step {self.progress.step} are not finite", self._order())
            return False
        if self._checkpoints is not None:
            progress = self.progress.as_json()
            self._checkpoints.save(self.progress.step, self._model, self._optimizers, self.average.weights, progress)
        return True

    def _load(self, path: Path) -> None:
        assert self._checkpoints is not None, "it is where the path comes from"
        content = self._checkpoints.load(path, self._model, self._optimizers, self.average.weights)
        self.progress = Progress.from_json(content, str(path))
