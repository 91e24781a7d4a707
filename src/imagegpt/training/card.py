"""The model card of a run, and the picture of what a classifier confuses."""

import re
import time

import torch

from imagegpt.checkpoints.loading import load_config
from imagegpt.common.text import printable
from imagegpt.figures.plots import confusion_matrix_plot, warn_on_failure
from imagegpt.files.atomic import atomic_write
from imagegpt.model.cost import num_parameters
from imagegpt.training.objectives import FinalScores
from imagegpt.training.optimizers import OPTIMIZERS
from imagegpt.training.run import Run

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
- The weights{ema} are those of step {state.best_step:,}, where validation was best: {best:.4f}.
- Data: {data}
"""


def write_card(run: Run, split: str, scores: FinalScores, command: str) -> None:
    """Write the model card, and for a classifier the confusion matrix as a picture.

    Args:
        run: that has ended.
        split: that its best model was scored on.
        scores: of its best model.
        command: that started it.
    """
    if scores.confusion is not None:
        assert run.data.classes is not None, "a classifier has classes"
        with warn_on_failure("confusion picture"):
            picture = confusion_matrix_plot(scores.confusion, run.data.classes)
            atomic_write(run.out / CONFUSION_FILE, picture, "the confusion picture")
    card = "\n".join(map(printable, _card(run, split, scores, command).split("\n")))
    atomic_write(run.out / CARD_FILE, card.encode(), "the card")


def _card(run: Run, split: str, scores: FinalScores, command: str) -> str:
    recipe, config, training, device = run.recipe, run.config, run.recipe.training, run.context.device
    header = f"license: {recipe.card.license}\n" if recipe.card.license else ""
    average = f", an exponential moving average ({training.ema_decay} per step),"
    return _CARD.format(
        header=header + "tags: [imagegpt]\n",
        title=recipe.card.title or f"ImageGPT trained on {run.data.name}",
        description=recipe.card.description or "An ImageGPT: it models images pixel by pixel.",
        scores=_scores(run, split, scores),
        command=_as_code(command),
        hours=_duration(run.state.trained_s),
        machine="a CPU" if device.type == "cpu" else torch.cuda.get_device_name(device),
        torch=torch.__version__,
        date=time.strftime("%Y-%m-%d"),
        config=config,
        biases="with" if config.use_bias else "without",
        parameters=num_parameters(load_config(run.out)),
        pixels=config.n_positions,
        colors=config.num_colors,
        objective=recipe.objective.name,
        adapters=f", by LoRA of rank {recipe.model.lora_rank}, merged" if recipe.model.lora_rank else "",
        training=training,
        optimizer=OPTIMIZERS.get(training.optimizer).description,
        schedule={"cosine": "a cosine to 0", "constant": "unchanged"}.get(training.schedule, training.schedule),
        augmentation=recipe.data.augmentation,
        ema="" if training.ema_decay is None else average,
        state=run.state,
        best=run.state.best["loss"],
        data=recipe.card.data or _describe_data(run),
    )


def _describe_data(run: Run) -> str:
    data, subset = run.data, run.data.validation_indices
    monitored = "" if subset is None else f" ({len(subset):,} of them while training)"
    num_test = 0 if data.test is None else len(data.test)
    return (
        f"{data.name}, {len(data.train):,} images to train, {len(data.validation):,} to validate{monitored}, "
        f"{num_test:,} to test; see `data.json`."
    )


def _scores(run: Run, split: str, scores: FinalScores) -> str:
    images = f"{len(run.data.splits[split]):,} images ({run.data.describe(split)})"
    if scores.accuracy is not None:
        return f"Accuracy on {images}: {scores.accuracy:.1%}."
    if not scores.scores:
        return f"Validation: {run.recipe.objective.format_metrics(run.state.best)}."
    rows = [f"| {one.name} ({one.note}) | {one.nats:.4f} |" for one in scores.scores]
    return "\n".join([f"| predicted by | nats per pixel of {images} |", "|---|---|", *rows])


def _as_code(text: str) -> str:
    """Text as Markdown's code, whatever backticks are in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}" if longest else f"`{text}`"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
