"""The training loop, in plain torch.

Everything random in step s is a function of (seed, s), see `rng`; everything else that a run consists of is in its
checkpoints. So a run that is killed and restarted ends with the same bits, on a CPU and with the same number of
processes.

A step whose loss or gradients are not finite never updates the weights: the run ends, or rolls back to its last
checkpoint and continues with other images if `monitoring.spike_nats` is set. Weights that are not finite are never
saved.
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

from imagegpt.data.batch import Batch
from imagegpt.data.dataloader import TrainingBatches
from imagegpt.data.rng import dropout_seed
from imagegpt.training.checkpoint import Checkpoints
from imagegpt.training.distributed import DistributedContext
from imagegpt.training.ema import ExponentialMovingAverage
from imagegpt.training.objectives import ModelWithObjective
from imagegpt.training.optimizers import build_optimizers, learning_rate
from imagegpt.training.parallelism import autocast, full_tensor, local_tensor, prepare_model, synchronize_gradients
from imagegpt.training.recipe import Recipe
from imagegpt.training.trainer_state import Metrics, TrainerState

Status = Literal["completed", "stopped", "early_stopped"]


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What happened in a step; a line of the log.

    Attributes:
        step: completed steps, from 1.
        metrics: of the step's images, with dropout; "loss" is what is minimised.
        validation: of the (averaged) weights, if there was a validation after this step.
        learning_rate: of this step.
        grad_norm: before clipping.
        elapsed_s: since this process began to train.
        images: trained on since then.
    """

    step: int
    metrics: Metrics
    validation: Metrics | None
    learning_rate: float
    grad_norm: float
    elapsed_s: float = 0.0
    images: int = 0


class Trainer:
    """Trains a model on batches, with validations and checkpoints.

    Args:
        module: the model, on the CPU, with its objective; the model is changed in place.
        recipe: how to train.
        context: the processes of the run.
        batches: of each step.
        validate: returns the metrics of the model with its current weights; called in every process, with the averaged
            weights swapped in.
        checkpoints: of the run.
        on_validation: called in every process after each validation, with the averaged weights still swapped in, the
            metrics, and whether they are the best so far.
        on_step: called in every process after each step.
        should_stop: polled after each step; True saves a checkpoint and ends the run.
    """

    def __init__(
        self,
        module: ModelWithObjective,
        recipe: Recipe,
        context: DistributedContext,
        batches: TrainingBatches,
        *,
        validate: Callable[[], Metrics],
        checkpoints: Checkpoints,
        on_validation: Callable[[Metrics, bool], None] = lambda *_: None,
        on_step: Callable[[StepReport], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._recipe, self._context, self._batches = recipe, context, batches
        self._validate, self._checkpoints = validate, checkpoints
        self._on_validation, self._on_step, self._should_stop = on_validation, on_step, should_stop
        self._module, self._model = prepare_model(module, recipe.training, context), module.model
        self._optimizers = build_optimizers(self._model, recipe.training)
        self.ema = ExponentialMovingAverage(self._model, recipe.training.ema_decay)
        self.state = TrainerState()

    def resume(self) -> bool:
        """Load the newest undamaged checkpoint; return False if there is none."""
        path = self._checkpoints.newest()
        if path is None:
            return False
        self._load(path)
        self._checkpoints.remove_old(self.state.step)  # a process that was killed may not have finished this
        return True

    def train(self) -> Status:
        """Train until the last step, or until there is a reason to stop, and save a checkpoint there.

        Raises: FloatingPointError if loss, gradients or weights are no longer finite, or the loss spikes too often.
        """
        monitoring, num_steps = self._recipe.monitoring, self._recipe.training.num_steps
        started, trained_s, first = time.perf_counter(), self.state.trained_s, self.state.step
        status = self._status()  # a run that was stopped early stays so when it is resumed
        if status == "completed" and monitoring.spike_nats is not None and self.state.step == 0:
            self._save()  # for a spike before the first regular checkpoint
        with torch.random.fork_rng():
            batches = self._iterate_batches()
            while self.state.step < num_steps and status == "completed":
                report = self._step(next(batches))
                if report is None:
                    batches = self._iterate_batches()
                    continue
                elapsed_s = time.perf_counter() - started
                self.state.trained_s = trained_s + elapsed_s
                images = self._recipe.training.batch_size * (report.step - first)
                self._on_step(replace(report, elapsed_s=elapsed_s, images=images))
                status = self._status()
                is_due = report.step % monitoring.checkpoint_every == 0 or report.step == num_steps
                if (is_due or status != "completed") and not self._save():
                    batches = self._iterate_batches()
        self._model.eval()
        return status

    def _step(self, micro_batches: Sequence[Batch]) -> StepReport | None:
        """Update the weights, and validate if due; None if the run was rolled back instead."""
        recipe, step = self._recipe, self.state.step
        metrics = self._compute_gradients(micro_batches)
        if self._is_spike(metrics["loss"]):
            self._roll_back(f"the loss of step {step + 1} is {metrics['loss']:.4g}", self._batch_number() + 1)
            return None
        grad_norm = float(full_tensor(clip_grad_norm_(self._model.parameters(), recipe.training.max_grad_norm)))
        if not math.isfinite(grad_norm):  # even with a finite loss; one update would ruin every weight
            self._roll_back(f"the gradients of step {step + 1} are not finite", self._batch_number() + 1)
            return None
        rate = learning_rate(step, recipe.training)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self.ema.update(step)
        self.state.step = done = step + 1
        self.state.recent_losses.append(metrics["loss"])
        is_due = done % recipe.monitoring.validate_every == 0 or done == recipe.training.num_steps
        validation = self._run_validation() if is_due else None
        return StepReport(step=done, metrics=metrics, validation=validation, learning_rate=rate, grad_norm=grad_norm)

    def _compute_gradients(self, micro_batches: Sequence[Batch]) -> Metrics:
        """Accumulate the gradients of a step, and return its metrics, averaged over all its images."""
        recipe, device = self._recipe.training, self._context.device
        self._model.train()
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        sums: dict[str, Tensor] = {}
        for index, batch in enumerate(micro_batches):
            # Seeded for each pass, so that dropout depends on nothing that came before.
            torch.manual_seed(dropout_seed(recipe.seed, self._batch_number(), self._context.rank, index))
            with synchronize_gradients(self._module, index == len(micro_batches) - 1):
                with autocast(device, recipe.precision):
                    losses = self._module(batch.to(device))
                (losses["loss"] / len(micro_batches)).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach()
        total = self._context.all_reduce(torch.stack(list(sums.values())))
        values = total / (len(micro_batches) * self._context.world_size)
        return dict(zip(sums, values.tolist(), strict=True))

    def _run_validation(self) -> Metrics:
        self._model.eval()
        with self.ema.swapped_in():
            metrics, state = self._validate(), self.state
            is_best = metrics["loss"] < state.best["loss"]
            state.last = metrics
            state.validations_since_best = 0 if is_best else state.validations_since_best + 1
            if is_best:
                state.best, state.best_step = metrics, state.step
            self._on_validation(metrics, is_best)
        return metrics

    def _status(self) -> Status:
        """Why the run must end now; "completed" if it need not end before its last step."""
        patience = self._recipe.monitoring.patience
        if self._context.any(self._should_stop()):
            return "stopped"
        return "completed" if patience is None or self.state.validations_since_best < patience else "early_stopped"

    def _is_spike(self, loss: float) -> bool:
        limit, recent = self._recipe.monitoring.spike_nats, self.state.recent_losses
        if not math.isfinite(loss):
            return True
        return limit is not None and len(recent) == recent.maxlen and loss > sum(recent) / len(recent) + limit

    def _is_finite(self) -> bool:
        """Whether everything that a checkpoint holds is finite, in all processes."""
        moments = (value for one in self._optimizers for state in one.state.values() for value in state.values())
        tensors = [*self._model.parameters(), *self.ema.weights.values(), *filter(torch.is_tensor, moments)]
        finite = torch.stack([local_tensor(one.detach()).isfinite().all() for one in tensors])
        return not self._context.any(not bool(finite.all()))

    def _roll_back(self, trouble: str, next_batch: int) -> None:
        """Return to the last checkpoint, but continue with a later batch.

        Args:
            trouble: what happened, for the error message.
            next_batch: number of the batch to continue with.
        Raises: FloatingPointError if the recipe allows no (more) rollbacks.
        """
        monitoring, rollbacks = self._recipe.monitoring, self.state.rollbacks + 1
        if monitoring.spike_nats is None:
            raise FloatingPointError(
                f"{trouble}: lower training.learning_rate, or set monitoring.spike_nats to skip such images"
            )
        path = self._checkpoints.newest()
        if rollbacks > monitoring.max_rollbacks or path is None:
            raise FloatingPointError(
                f"{trouble}, spike number {rollbacks}, of which monitoring.max_rollbacks allows "
                f"{monitoring.max_rollbacks}: lower training.learning_rate"
            )
        best, best_step = self.state.best, self.state.best_step
        self._load(path)
        # The best weights so far are saved, even if the steps that led to them are undone.
        self.state.best, self.state.best_step = best, best_step
        self.state.rollbacks, self.state.skipped_batches = rollbacks, next_batch - self.state.step

    def _batch_number(self) -> int:
        """The number of the next step's batch in the order of the images."""
        return self.state.step + self.state.skipped_batches

    def _iterate_batches(self) -> Iterator[list[Batch]]:
        last = self._recipe.training.num_steps + self.state.skipped_batches
        workers, pin_memory = self._recipe.data.num_workers, self._context.device.type == "cuda"
        return self._batches.prefetch(self._batch_number(), last, num_workers=workers, pin_memory=pin_memory)

    def _save(self) -> bool:
        """Save a checkpoint; False if it would hold values that are not finite, and the run was rolled back."""
        if not self._is_finite():
            self._roll_back(f"the weights after step {self.state.step} are not finite", self._batch_number())
            return False
        state = self.state.to_json()
        self._checkpoints.save(self.state.step, self._model, self._optimizers, self.ema.weights, state)
        return True

    def _load(self, path: Path) -> None:
        content = self._checkpoints.load(path, self._model, self._optimizers, self.ema.weights)
        self.state = TrainerState.from_json(content, str(path))
