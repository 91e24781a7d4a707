"""Training from Python: `imagegpt.train` and `imagegpt.finetune`. The command line only parses options and prints."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagegpt.checkpoints.loading import find_folder, load_config, load_processor
from imagegpt.common.shell import shell_command
from imagegpt.data.identity import DataRecord
from imagegpt.data.opened_data import has_own_palette
from imagegpt.data.sources.registry import source_processor
from imagegpt.evaluation.scoring import Score
from imagegpt.training.callbacks import TrainingCallback
from imagegpt.training.card import write_card
from imagegpt.training.distributed import distributed_context
from imagegpt.training.recipe import Recipe
from imagegpt.training.recipe_files import bundled_recipes, find_recipe
from imagegpt.training.recipe_io import parse_recipe, read_recipe
from imagegpt.training.run import Run
from imagegpt.training.trainer import Status


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The result of a training run.

    Attributes:
        folder: of the model.
        status: "completed", "stopped" by a callback or signal, or "early_stopped" because validation did not improve.
        is_main: whether this process has the results; with `torchrun` the others have no scores.
        steps: completed, over all restarts.
        seconds: of training, over all restarts.
        best_step: the step whose weights are in the folder.
        best_validation: metrics of these weights on the validation images.
        split: which images were scored at the end, in words; None if the run was stopped.
        num_images: that were scored at the end.
        scores: of the best model on these images, in nats per pixel, beside baselines; empty for a classifier.
        accuracy: of a classifier on these images.
        num_broken_images: that were skipped.
        next_command: what to try with the model.
    """

    folder: Path
    status: Status
    is_main: bool
    steps: int
    seconds: float
    best_step: int
    best_validation: Mapping[str, float]
    split: str | None = None
    num_images: int = 0
    scores: Sequence[Score] = ()
    accuracy: float | None = None
    num_broken_images: int = 0
    next_command: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can represent, with units in the names of scores."""
        fields = dataclasses.asdict(self) | {"folder": str(self.folder)}
        del fields["is_main"]
        fields["scores"] = [score.to_dict() for score in self.scores]
        return fields


def train(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    out: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    device: str | None = None,
    force: bool = False,
    callback: TrainingCallback | None = None,
    command: str | None = None,
) -> TrainingResult:
    """Train a model as a recipe says, score it on held-out images, and write its card.

    The same call resumes a run that was stopped or killed, and only scores one that is completed. Launched by
    `torchrun` it trains on many processes.

    Args:
        recipe: name of a bundled one, path of a .yaml file, nested dictionaries, or a `Recipe`.
        out: folder for the model; created if it does not exist.
        overrides: changes to the recipe, such as "training.batch_size=16"; not for a `Recipe`.
        device: cpu, cuda or cuda:1; None is a GPU if there is one.
        force: start over if the folder holds a run.
        callback: hooks into the run.
        command: that the card names; None is this call.
    Returns: how the run ended, and the scores of its best weights.
    Raises: ValueError or OSError, in one sentence, if something does not fit together; FloatingPointError if loss,
        gradients or weights are no longer finite.
    """
    loaded, out, callback = load_recipe(recipe, overrides), Path(out), callback or TrainingCallback()
    name = repr(os.fspath(recipe)) if isinstance(recipe, str | os.PathLike) else "recipe"
    command = command or f"imagegpt.train({name}, {str(out)!r})"
    with ExitStack() as lock:  # of the folder, until the card is written
        with distributed_context(device) as context:
            is_restart = context.any(context.restarts > 0)  # by torchrun: then the folder holds this very run
            run = Run(loaded, out, context, force=force and not is_restart, callback=callback)
            callback.on_start(run)
            lock.enter_context(run.lock())
            status = run.train()
        callback.on_training_end(status)
        return finish_run(run, status, command, callback)


def finetune(
    model: str,
    data: str,
    out: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    lora_rank: int | None = None,
    device: str | None = None,
    force: bool = False,
    callback: TrainingCallback | None = None,
    command: str | None = None,
) -> TrainingResult:
    """Train a classifier that starts from a pretrained model, and score it on held-out images.

    Args:
        model: a bundled name, a folder, or a name on the hub.
        data: "digits", a folder written by `imagegpt encode`, or images in a folder for each class.
        out: folder for the classifier.
        recipe: name or path of a .yaml file; None is the bundled one for this model, or "finetune".
        overrides: changes to the recipe, such as "training.batch_size=16".
        lora_rank: train adapters of this rank and the head, instead of all weights.
        device: see `train`, as for the remaining arguments.
        force: start over if the folder holds a run.
        callback: hooks into the run.
        command: that the card names.
    Returns: as `train`.
    Raises: as `train`.
    """
    loaded = finetuning_recipe(model, data, recipe, overrides, lora_rank=lora_rank)
    command = command or f"imagegpt.finetune({model!r}, {data!r}, {str(out)!r})"
    return train(loaded, out, device=device, force=force, callback=callback, command=command)


def load_recipe(recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe, given in any of the forms that `train` takes.

    Raises: ValueError or OSError, in one sentence, if there is no such recipe or it is invalid.
    """
    if isinstance(recipe, str | os.PathLike):
        return read_recipe(find_recipe(os.fspath(recipe)), overrides)
    if isinstance(recipe, Recipe):
        if overrides:
            raise ValueError(f"overrides ({', '.join(overrides)}) were given with a Recipe: change the recipe instead")
        return recipe
    return parse_recipe(dict(recipe), overrides)


def finetuning_recipe(
    model: str, data: str, recipe: str | None, overrides: Sequence[str] = (), *, lora_rank: int | None = None
) -> Recipe:
    """Return the recipe that turns a pretrained model into a classifier.

    Images that are not encoded get the model's palette and size. They are split as the model's training data were. A
    bidirectional model becomes a bidirectional classifier.

    Raises: ValueError or OSError, in one sentence, if there is no such recipe or model, or an override is invalid.
    """
    own = f"finetune-{model}"
    path = find_recipe(recipe or (own if own in bundled_recipes() else "finetune"))
    folder = find_folder(model)
    config = load_config(folder)
    values: dict[str, Any] = {"model.pretrained": model, "data.train": data}
    if not has_own_palette(data):
        processor = load_processor(folder, config)
        values |= {"data.palette": model, "data.side": processor.size["height"]}
    record = DataRecord.read(folder)
    if record is not None and source_processor(data) is None:  # what was held out from pre-training is held out again
        values["data.split"] = dict(record.hash_split)
    chosen = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    bidirectional = read_recipe(path, chosen).objective.bidirectional_name
    if not config.is_causal and bidirectional is not None:
        chosen.append(f"objective.name={bidirectional}")
    if lora_rank is not None:
        chosen.append(f"model.lora_rank={lora_rank}")
    return read_recipe(path, [*chosen, *overrides])


def finish_run(run: Run, status: Status, command: str, callback: TrainingCallback) -> TrainingResult:
    """Score the best model of a run that has ended and write its card, in the main process; not if it was stopped."""
    result = TrainingResult(
        folder=run.out,
        status=status,
        is_main=run.context.is_main,
        steps=run.step,
        seconds=run.state.trained_s,
        best_step=run.state.best_step,
        best_validation=run.state.best,
        num_broken_images=len(run.data.broken),
    )
    if status == "stopped" or not run.context.is_main:
        return result
    split = run.data.choose_split()
    objective, device = run.recipe.objective, str(run.context.device)
    scores = objective.evaluate(run.out, run.data, split, device=device, progress=callback.on_evaluation)
    write_card(run, split, scores, command)
    return dataclasses.replace(
        result,
        split=run.data.describe(split),
        num_images=len(run.data.splits[split]),
        scores=scores.scores,
        accuracy=scores.accuracy,
        next_command=shell_command(*(("sample", "--model") if objective.can_sample else ("info",)), run.out),
    )
