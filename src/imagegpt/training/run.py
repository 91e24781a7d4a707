"""A training run from a recipe to a folder that is a model, with everything that was seen on the way.

    OUT/config.json, model.safetensors, preprocessor_config.json   the best model so far
    OUT/README.md                                                  its card, when the run is done
    OUT/recipe.yaml                                                what is done: every default and choice spelt out
    OUT/data.json                                                  which images it learns from, validates and tests with
    OUT/broken-images.txt                                          images that were left out, if there are any
    OUT/log.jsonl, curve.png                                       losses, a line a step, and a picture of them
    OUT/samples/step-00000500.png                                  what the model drew
    OUT/checkpoints/step-00000500/                                 what the run can go on from

The same recipe and data in the same folder resume the run; others are refused. Only what defines a run has to be the
same: `folder` says which fields may change, and `training.num_steps` may grow. Only one process at a time, or one group
of them, trains in a folder.
"""

import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from imagegpt.config import ImageGPTConfig
from imagegpt.data.broken_images import BROKEN_FILE, write_list
from imagegpt.files.atomic import atomic_write
from imagegpt.files.locks import lock_folder, remove_if_unused
from imagegpt.model.eval_mode import evaluating
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.training import rng
from imagegpt.training.callbacks import Trackers, check_trackers, draw_curve, draw_samples, failing_quietly, read_log
from imagegpt.training.checkpoint import Checkpoints
from imagegpt.training.dataloader import Images, Share, Steps, check_labels, in_stretches
from imagegpt.training.datasets import open_data
from imagegpt.training.distributed import World
from imagegpt.training.factory import build_loss, rebuilt, save_model
from imagegpt.training.memory_estimate import check_training
from imagegpt.training.objectives import Batch, Loss
from imagegpt.training.parallelism import autocast, whole_weights
from imagegpt.training.recipe import Recipe
from imagegpt.training.run_folder import RECIPE_FILE, check_data, check_folder, remove_leftovers, remove_run
from imagegpt.training.run_precision import precision_in_file, with_precision
from imagegpt.training.run_state import Metrics, Progress
from imagegpt.training.trainer import Outcome, Step, Trainer

LOG_FILE, CURVE_FILE = "log.jsonl", "curve.png"
_SCORED_AT_ONCE = 64
_MASKED_LIKE_STEP = 0  # the masks of validation images are those of one step, so that they are always the same


@dataclass(frozen=True, kw_only=True)
class Told:
    """What is told after each step.

    Attributes:
        step: see `trainer.Step`.
        num_steps: of the whole run.
        best: the best validation so far.
    """

    step: Step
    num_steps: int
    best: Metrics


class Run:
    """A run in a folder.

    Args:
        recipe: what to do.
        out: the folder; made if it is not there. A run of the same recipe and data in it is resumed.
        world: the processes that do it.
        force: start over if the folder holds a run, of whatever recipe. Files that no run wrote stay, with a warning.
        on_step: called in the main process after each step.
        should_stop: asked after each step.
    Raises: ValueError or OSError, in one sentence, if something does not fit together or another process trains in the
        folder, before anything is written.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        world: World,
        *,
        force: bool = False,
        on_step: Callable[[Told], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        recorded = None if force else precision_in_file(out / RECIPE_FILE)
        recipe, self.precision = with_precision(recipe, recorded, world)
        self.recipe, self.out, self._world, self._tell = recipe, out, world, on_step
        self._is_locked = False
        training = recipe.training
        self._share = Share(
            batch_size=training.batch_size, rank=world.rank, world_size=world.size, micro_batch=training.micro_batch
        )
        check_folder(out, recipe, force=force)
        check_trackers(recipe.watch.trackers)
        self.data = open_data(recipe.data, recipe.watch.validation_images)
        if not force:
            check_data(out, self.data.record)
        self._loss: Loss = build_loss(recipe, self.data)
        check_training(self._loss.model, self.config, recipe, world)
        hides = recipe.objective.hides_pixels
        self._mask_probability = recipe.objective.mask_probability if hides else None
        with self.locked():
            self._claim_folder(force)
            self._prepare(should_stop)

    def _prepare(self, should_stop: Callable[[], bool]) -> None:
        """Build what trains, and resume it if there is a checkpoint."""
        recipe, out, world, training = self.recipe, self.out, self._world, self.recipe.training
        self._checkpoints = Checkpoints(out / "checkpoints", world, recipe.watch.keep_checkpoints)
        self._trainer = Trainer(
            self._loss,
            recipe,
            world,
            Steps(
                self.data.train,
                self._share,
                training.seed,
                self._mask_probability,
                recipe.objective.mask_up_to,
                labelled=recipe.objective.needs_labels,
            ),
            validate=lambda: self.score(self.data.watched),
            checkpoints=self._checkpoints,
            on_validation=self._on_validation,
            on_step=self._on_step,
            should_stop=should_stop,
        )
        self.resumed = self._trainer.resume()
        self._trackers = Trackers(recipe.watch.trackers if world.is_main else (), out, recipe)
        self._forget_what_comes_again()

    @property
    def step(self) -> int:
        """Steps done."""
        return self._trainer.progress.step

    @property
    def progress(self) -> Progress:
        """What the run has come to."""
        return self._trainer.progress

    @property
    def config(self) -> ImageGPTConfig:
        """Of the model."""
        return cast(Any, self._loss.model).config

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._world.device

    def train(self) -> Outcome:
        """Train to the end, or until it is stopped.

        Raises: FloatingPointError if loss, gradients or weights are no longer finite; ValueError if another process
            trains in the folder, or another run was started in it since this one was prepared.
        """
        try:
            with self.locked():
                if (self.out / RECIPE_FILE).read_bytes() != self.recipe.resolved().encode():
                    raise ValueError(f"another run was started in {self.out} meanwhile: choose another place")
                return self._trainer.run()
        finally:
            self._trackers.close()

    @torch.no_grad()
    def score(self, images: Images) -> Metrics:
        """The objective over images, in evaluation mode and the recipe's precision, from all processes."""
        model, device = self._loss.model, self._world.device
        sums: dict[str, Tensor] = {}
        with evaluating(model):
            for ids, labels, start, counted in in_stretches(
                images, _SCORED_AT_ONCE, self._world.rank, self._world.size
            ):
                if self.recipe.objective.needs_labels:
                    check_labels(None if labels is None else labels.numpy())
                masked = None
                if self._mask_probability is not None:
                    places, seed = np.arange(start, start + len(ids)), self.recipe.training.seed
                    hidden = rng.masks(seed, _MASKED_LIKE_STEP, places, ids.shape[1], self._mask_probability)
                    masked = torch.from_numpy(hidden)
                with autocast(device, self.recipe.training.precision):
                    parts = self._loss(Batch(ids=ids, labels=labels, masked=masked).to(device))
                for name, value in {**parts, "images": torch.ones((), device=device)}.items():
                    sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64, device=device)) + value * counted
        totals = dict(zip(sums, self._world.sum(torch.stack(list(sums.values()))).tolist(), strict=True))
        return {name: value / totals["images"] for name, value in totals.items() if name != "images"}

    def _on_validation(self, scores: Metrics, is_best: bool) -> None:
        draws = self.recipe.watch.samples > 0 and self.recipe.objective.name == "autoregressive"
        if not is_best and not draws:
            return
        weights = whole_weights(self._loss.model)
        if not self._world.is_main:
            return
        if is_best:
            save_model(weights, self._loss.model, self.data.processor, self.out)
        if draws:
            model = rebuilt(weights, self._loss.model)
            assert isinstance(model, ImageGPTForCausalImageModeling)
            name = f"step-{self.step:08d}.png"
            with failing_quietly("sheet of samples"):
                draw_samples(model, self.data.processor, self.recipe.watch.samples, self.out / "samples" / name)

    def _on_step(self, step: Step) -> None:
        if self._world.is_main:
            line = {name: value for name, value in dataclasses.asdict(step).items() if value is not None}
            with (self.out / LOG_FILE).open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
                if step.step % self.recipe.watch.checkpoint_every == 0:  # a power cut costs nothing before a checkpoint
                    log.flush()
                    os.fsync(log.fileno())
            self._trackers.log(step)
            if step.validation is not None:
                with failing_quietly("picture of the losses"):
                    draw_curve(self.out / LOG_FILE, self.out / CURVE_FILE)
            self._tell(Told(step=step, num_steps=self.recipe.training.num_steps, best=self._trainer.progress.best))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the folder, made if need be, from other runs; the main process does so for all of this one.

        `train` does so itself. Whoever has more to do there, as `card.finish` has, holds the lock around both.

        Raises: ValueError or OSError, in all processes, if that cannot be.
        """
        if self._is_locked:
            yield
            return
        lock, refusal = None, None
        if self._world.is_main:
            is_new = not self.out.exists()
            try:
                self.out.mkdir(exist_ok=True)
                lock = lock_folder(self.out, "trains in")
            except (ValueError, OSError) as error:
                refusal = error
                if is_new:
                    remove_if_unused(self.out)
        refusal = self._world.told(refusal)
        if refusal is not None:
            raise refusal
        self._is_locked = True
        try:
            yield
        finally:
            self._is_locked = False
            if lock is not None:
                lock.release()

    def _claim_folder(self, force: bool) -> None:
        """Make the folder this run's; nobody else may be at work there."""
        check_folder(self.out, self.recipe, force=force)  # once more: another process may have had it meanwhile
        if not force:
            check_data(self.out, self.data.record)
        self._world.wait()  # until all have looked at it
        if self._world.is_main:
            if force and (others := remove_run(self.out)):
                more = f" and {len(others) - 3} more" if len(others) > 3 else ""
                told = f"{', '.join(others[:3])}{more}"
                warnings.warn(f"{self.out} also holds {told}, which no run wrote and which stays", stacklevel=4)
            remove_leftovers(self.out)
            self.data.record.write(self.out)
            atomic_write(self.out / RECIPE_FILE, self.recipe.resolved().encode(), "the recipe")
            if self.data.broken:
                write_list(self.out / BROKEN_FILE, self.data.broken)
            else:
                (self.out / BROKEN_FILE).unlink(missing_ok=True)
        self._world.wait()

    def _forget_what_comes_again(self) -> None:
        """Drop the lines of the log that steps after the checkpoint wrote: those steps are made again."""
        log = self.out / LOG_FILE
        if not self._world.is_main or not log.is_file():
            return
        kept = [text for text, line in read_log(log) if line.step <= self.step]
        atomic_write(log, "".join(kept).encode(), "the log")
