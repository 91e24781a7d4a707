"""The end of a run: scores of the best model, on images that nothing was chosen with if there are any, and its card."""

import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64

from imagegpt.checkpoints.loading import load_config
from imagegpt.common.shell import command as command_to_type
from imagegpt.common.text import printable
from imagegpt.evaluation.comparison import Score, baselines
from imagegpt.figures.plots import confusion_picture
from imagegpt.files.atomic import atomic_write
from imagegpt.model.cost import num_parameters
from imagegpt.training.run import Run
from imagegpt.training.scores import Progress, classify, masked_nats, parts_of, score_folder, silent

CARD_FILE, CONFUSION_FILE = "README.md", "confusion.png"

_CARD = """---
library_name: imagegpt
{header}---
# {title}

{description}

{scores}

## How it was made

- Command: {command},
  {hours} on {machine} in {training.precision} (torch {torch}, {date}); all settings are in `recipe.yaml`.
- Architecture: blocks {config.n_layer}, width {config.n_embd}, heads {config.n_head}, {biases} biases,
  {parameters:,} parameters; {pixels} pixels in {colors} colours.
- Training: {objective}{adapters}; {optimizer} ({training.beta1}, {training.beta2}),
  weight decay {training.weight_decay}; {training.num_steps:,} steps of {training.batch_size} images;
  learning rate {training.learning_rate} after {training.warmup_steps:,} steps of warm-up, then {schedule};
  dropout {config.resid_pdrop};
  augmentation: {augmentation}.
- The weights are a running average ({training.average_decay} a step), taken at step {progress.best_step:,}, where
  validation was best: {best:.4f}.
- Data: {data}
"""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What is told when a run is over.

    Attributes:
        scores: on the test images, or on those of validation if there are no others; of a classifier none.
        accuracy: share of images whose class a classifier says rightly.
        num_images: scored.
        which: of the images, in words, see `Data.describe`.
        next_command: what one may do with the model.
    """

    scores: list[Score]
    accuracy: float | None
    num_images: int
    which: str
    next_command: str


def finish(run: Run, out: Path, command: str, progress: Progress = silent) -> Ending:
    """Score the best model of a run and write its card.

    Args:
        run: that has ended.
        out: its folder.
        command: that made it.
        progress: called with images scored, and images in all.
    """
    data, objective = run.data, run.recipe.objective.name
    part = data.choose_part()
    images = data.parts[part]
    scores: list[Score] = []
    accuracy = None
    if objective == "autoregressive":
        scores = score_folder(out, data, part=part, device=str(run.device), progress=progress)
    elif objective == "bert":
        probability = run.recipe.objective.mask_probability
        nats = masked_nats(out, images, probability=probability, device=str(run.device), progress=progress)
        note = f"{num_parameters(load_config(out)):,} parameters, {probability:.0%} of the pixels hidden"
        own = Score(name="this model", nats=nats, note=note)
        scores = sorted([own, *baselines(parts_of(data, part))], key=lambda one: one.nats)
    else:
        probability = run.recipe.objective.mask_probability
        said, right = classify(out, images, mask_probability=probability, device=str(run.device), progress=progress)
        accuracy = float((said == right).mean())
        assert data.classes is not None
        counts = np.zeros((len(data.classes), len(data.classes)), np.int64)
        np.add.at(counts, (right, said), 1)
        _draw_confusion(counts, data.classes, out / CONFUSION_FILE)
    ending = Ending(
        scores=scores,
        accuracy=accuracy,
        num_images=len(images),
        which=data.describe(part),
        next_command=command_to_type(*(("sample", "--model") if objective == "autoregressive" else ("info",)), out),
    )
    card = "\n".join(map(printable, _card(run, ending, command).split("\n")))
    atomic_write(out / CARD_FILE, card.encode(), "the card")
    return ending


def _draw_confusion(counts: Int64[np.ndarray, "k k"], classes: Sequence[str], path: Path) -> None:
    """Draw which classes are confused; a failure is a warning, since the run is worth as much without the picture."""
    try:
        atomic_write(path, confusion_picture(counts, classes), "the confusion picture")
    except Exception as error:  # noqa: BLE001 - matplotlib has errors of many kinds
        warnings.warn(f"there is no confusion picture ({' '.join(str(error).split())})", stacklevel=2)


def _card(run: Run, ending: Ending, command: str) -> str:
    recipe, config = run.recipe, run.config
    about, progress = recipe.card, run.progress
    header = f"license: {about.license}\n" if about.license else ""
    return _CARD.format(
        header=header + "tags: [imagegpt]\n",
        title=about.title or f"ImageGPT trained on {run.data.name}",
        description=about.description or "An ImageGPT: it models images pixel by pixel.",
        scores=_table(ending),
        command=_as_code(command),
        hours=_duration(progress.trained_s),
        machine="a CPU" if run.device.type == "cpu" else torch.cuda.get_device_name(run.device),
        torch=torch.__version__,
        date=time.strftime("%Y-%m-%d"),
        config=config,
        biases="with" if config.use_bias else "without",
        parameters=num_parameters(load_config(run.out)),
        pixels=config.n_positions,
        colors=config.num_colors,
        objective=recipe.objective.name,
        adapters=f", by LoRA of rank {recipe.model.lora_rank}, merged" if recipe.model.lora_rank else "",
        training=recipe.training,
        optimizer="Muon for the projections, and AdamW" if recipe.training.optimizer == "muon" else "AdamW",
        schedule="a cosine to 0" if recipe.training.schedule == "cosine" else "unchanged",
        augmentation=recipe.data.augmentation,
        progress=progress,
        best=progress.best["total"],
        data=about.data
        or f"{run.data.name}, {len(run.data.train):,} images to train, "
        f"{len(run.data.validation):,} to validate{_watched(run)}, "
        f"{0 if run.data.test is None else len(run.data.test):,} to test; see `data.json`.",
    )


def _watched(run: Run) -> str:
    subset = run.data.subset
    return "" if subset is None else f" ({len(subset):,} of them while training)"


def _table(ending: Ending) -> str:
    if ending.accuracy is not None:
        return f"Accuracy on {ending.num_images:,} images ({ending.which}): {ending.accuracy:.1%}."
    rows = [f"| {one.name} ({one.note}) | {one.nats:.4f} |" for one in ending.scores]
    head = [f"| predicted by | nats per pixel of {ending.num_images:,} images ({ending.which}) |", "|---|---|"]
    return "\n".join([*head, *rows])


def _as_code(text: str) -> str:
    """Text as Markdown's code, whatever backticks are in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}" if longest else f"`{text}`"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
