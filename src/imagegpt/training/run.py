"""A training run: from a recipe to a folder that holds a model, with everything that was recorded on the way.

    OUT/config.json, model.safetensors, preprocessor_config.json   the best model so far
    OUT/README.md                                                  the model card, when the run is completed
    OUT/recipe.yaml                                                the recipe, with every default
    OUT/data.json                                                  identifies the images of each split
    OUT/broken-images.txt                                          images that were skipped, if there are any
    OUT/log.jsonl, curve.png                                       losses, a line per step, and a picture of them
    OUT/samples/step-00000500.png                                  samples of the model
    OUT/checkpoints/step-00000500/                                 for resuming

The same recipe and data in the same folder resume the run; others are refused. Only what defines a run must be the
same: `run_folder` says which fields may change, and `training.num_steps` may grow. Only one process, or one group of
processes, may train in a folder at a time.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from imagegpt.config import ImageGPTConfig
from imagegpt.data.broken_images import BROKEN_FILE, write_list
from imagegpt.data.dataloader import BatchLayout, TrainingBatches
from imagegpt.data.datasets import TokenDataset
from imagegpt.data.loading import open_data
from imagegpt.figures.grids import sample_grid
from imagegpt.figures.plots import warn_on_failure
from imagegpt.files.atomic import atomic_write
from imagegpt.files.locks import lock_folder, remove_if_empty
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.sampling import Sampler, image_seed
from imagegpt.training.callbacks import TrainingCallback
from imagegpt.training.checkpoint import Checkpoints
from imagegpt.training.distributed import DistributedContext
from imagegpt.training.factory import build_model, rebuild_model, save_model
from imagegpt.training.memory_estimate import check_training
from imagegpt.training.parallelism import full_state_dict, is_sharded
from imagegpt.training.recipe import Recipe
from imagegpt.training.recipe_io import read_recipe
from imagegpt.training.run_folder import RECIPE_FILE, check_data, check_folder, remove_leftovers, remove_run
from imagegpt.training.run_precision import resolve_precision
from imagegpt.training.trackers import Trackers, check_trackers
from imagegpt.training.trainer import Status, StepReport, Trainer
from imagegpt.training.trainer_state import Metrics, TrainerState
from imagegpt.training.training_log import TrainingLog
from imagegpt.training.validation import mean_metrics

LOG_FILE, CURVE_FILE = "log.jsonl", "curve.png"


class Run:
    """A run in a folder.

    Args:
        recipe: what to train, on what, and how.
        out: the folder; created if it does not exist. A run of the same recipe and data in it is resumed.
        context: the processes of the run.
        force: start over if the folder holds a run, of any recipe. Files that no run wrote remain, with a warning.
        callback: hooks into the run; `on_step` and `should_stop` are called here, the others by `imagegpt.train`.
    Raises: ValueError or OSError, in one sentence, if something does not fit together or another process trains in the
        folder, before anything is written.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        context: DistributedContext,
        *,
        force: bool = False,
        callback: TrainingCallback | None = None,
    ) -> None:
        recorded = None if force else lambda: read_recipe(out / RECIPE_FILE)
        recipe, self.precision = resolve_precision(recipe, recorded, context)
        self.recipe, self.out, self.context = recipe, out, context
        self._callback = callback or TrainingCallback()
        self._is_locked = False
        training = recipe.training
        self._layout = BatchLayout(
            batch_size=training.batch_size,
            rank=context.rank,
            world_size=context.world_size,
            micro_batch_size=training.micro_batch_size,
        )
        check_folder(out, recipe, force=force)
        check_trackers(recipe.monitoring.trackers)
        self.data = open_data(recipe.data, recipe.monitoring.validation_images)
        if not force:
            check_data(out, self.data.record)
        receives_shards = is_sharded(training, context) and not context.is_main
        self._module = build_model(recipe, self.data, on_meta=receives_shards)
        check_training(self._module.model, self.config, recipe, context)
        with self.lock():
            self._claim_folder(force)
            self._prepare()

    def _prepare(self) -> None:
        """Create the trainer, and resume from a checkpoint if there is one."""
        recipe, out, context = self.recipe, self.out, self.context
        mask_probability, max_mask_probability = recipe.objective.masking or (None, None)
        batches = TrainingBatches(
            self.data.train,
            self._layout,
            recipe.training.seed,
            mask_probability,
            max_mask_probability,
            needs_labels=recipe.objective.needs_labels,
        )
        self._trainer = Trainer(
            self._module,
            recipe,
            context,
            batches,
            validate=lambda: self.score(self.data.monitored_validation),
            checkpoints=Checkpoints(out / "checkpoints", context, recipe.monitoring.keep_checkpoints),
            on_validation=self._save_best_and_samples,
            on_step=self._log_step,
            should_stop=self._callback.should_stop,
        )
        self.resumed = self._trainer.resume()
        if context.is_main:
            self._trackers = Trackers(recipe.monitoring.trackers, out, recipe)
            self._log = TrainingLog(out / LOG_FILE, self.step)

    @property
    def step(self) -> int:
        """Number of completed steps."""
        return self._trainer.state.step

    @property
    def state(self) -> TrainerState:
        """Steps, best validation and so on."""
        return self._trainer.state

    @property
    def config(self) -> ImageGPTConfig:
        """Configuration of the model."""
        return cast(Any, self._module.model).config

    def train(self) -> Status:
        """Train until the last step, or until the run is stopped.

        Raises: FloatingPointError if loss, gradients or weights are no longer finite; ValueError if another process
            trains in the folder, or another run was started in it since this one was prepared.
        """
        try:
            with self.lock():
                if (self.out / RECIPE_FILE).read_bytes() != self.recipe.to_yaml().encode():
                    raise ValueError(f"another run was started in {self.out} meanwhile: choose another path")
                return self._trainer.train()
        finally:
            if self.context.is_main:
                self._trackers.close()

    def score(self, dataset: TokenDataset) -> Metrics:
        """Return the metrics of the current weights over a data set; all processes share the work."""
        return mean_metrics(self._module, dataset, self.recipe, self.context)

    def _save_best_and_samples(self, metrics: Metrics, is_best: bool) -> None:
        num_samples = self.recipe.monitoring.samples if self.recipe.objective.can_sample else 0
        if not is_best and not num_samples:
            return
        weights = full_state_dict(self._module.model)
        if not self.context.is_main:
            return
        if is_best:
            save_model(weights, self._module.model, self.data.processor, self.out)
        if num_samples:
            model = rebuild_model(weights, self._module.model)
            assert isinstance(model, ImageGPTForCausalImageModeling)
            cast(Any, model).to(self.context.device)  # transformers' annotation of `to` is wrong
            path = self.out / "samples" / f"step-{self.step:08d}.png"
            with warn_on_failure("sheet of samples"):
                save_samples(model, self.data.processor, num_samples, path)

    def _log_step(self, report: StepReport) -> None:
        if self.context.is_main:
            is_checkpoint = report.step % self.recipe.monitoring.checkpoint_every == 0
            self._log.append(report, flush=is_checkpoint)
            self._trackers.log(report)
            if report.validation is not None:
                with warn_on_failure("picture of the losses"):
                    self._log.draw_curve(self.out / CURVE_FILE)
            self._callback.on_step(report)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Context manager that locks the folder, and creates it if need be; reentrant.

        `train` does so itself. To keep the lock until the model card is written, hold it around both.

        Raises: ValueError or OSError, in all processes, if the folder cannot be locked.
        """
        if self._is_locked:
            yield
            return
        lock, refusal = None, None
        if self.context.is_main:
            is_new = not self.out.exists()
            try:
                self.out.mkdir(exist_ok=True)
                lock = lock_folder(self.out, "trains in")
            except (ValueError, OSError) as error:
                refusal = error
                if is_new:
                    remove_if_empty(self.out)
        refusal = self.context.broadcast(refusal)
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
        """Write the files that identify the run; the caller must hold the lock."""
        check_folder(self.out, self.recipe, force=force)  # again: another process may have held the lock meanwhile
        if not force:
            check_data(self.out, self.data.record)
        self.context.barrier()  # until all have checked
        if self.context.is_main:
            if force and (others := remove_run(self.out)):
                more = f" and {len(others) - 3} more" if len(others) > 3 else ""
                names = f"{', '.join(others[:3])}{more}"
                warnings.warn(f"{self.out} also holds {names}, which no run wrote and which stays", stacklevel=4)
            remove_leftovers(self.out)
            self.data.record.write(self.out)
            atomic_write(self.out / RECIPE_FILE, self.recipe.to_yaml().encode(), "the recipe")
            if self.data.broken:
                write_list(self.out / BROKEN_FILE, self.data.broken)
            else:
                (self.out / BROKEN_FILE).unlink(missing_ok=True)
        self.context.barrier()


def save_samples(
    model: ImageGPTForCausalImageModeling, processor: ImageGPTImageProcessor, num: int, path: Path
) -> None:
    """Sample images and save them in a grid; the seeds are the first ones of seed 0.

    Args:
        model: on the device to sample on. It is modified and must not be used afterwards.
        processor: turns ids into images.
        num: of images.
        path: of the PNG; its folder is created.
    """
    sampler = Sampler(model, in_place=True)
    ids = sampler.generate(None, seeds=[image_seed(0, index) for index in range(num)])
    path.parent.mkdir(exist_ok=True)
    content = io.BytesIO()
    sample_grid(processor.decode(ids)).save(content, format="PNG")
    atomic_write(path, content.getvalue(), "the samples")
