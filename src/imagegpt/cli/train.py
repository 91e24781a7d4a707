"""`imagegpt train RECIPE`: make a model, and a folder that both we and transformers can load.

The folder appears whole or not at all: it is put together under another name beside its place, and that is tried before
the slow work begins.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from imagegpt.cli import _output, _shared
from imagegpt.cli.evaluate import Score, print_scores, score

if TYPE_CHECKING:  # torch and what stands on it take seconds, and `--help` needs none of it
    from imagegpt.model.modeling import ImageGPTForCausalImageModeling
    from imagegpt.processing import ImageGPTImageProcessor
    from imagegpt.training import trainer
    from imagegpt.training.data import ImageData

train_app = typer.Typer(help="Train a model.", no_args_is_help=True)

_CARD = "README.md"
_OURS = {_CARD, "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json"}

# The recipe of the bundled model: `imagegpt train digits --out DIR`, under three minutes on two cores, for a test
# likelihood near 1.25 nats per pixel; docs/log.md has what else was tried.
DIGITS_STEPS = 2500
DIGITS_MODEL: dict[str, Any] = {
    "n_embd": 64,
    "n_layer": 4,
    "n_head": 4,
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.0,  # 0.1 was tried for 20 steps only
    "init_scheme": "openai",
    "use_bias": True,  # the paper has none, but transformers insists on them
}
DIGITS_TRAINING: dict[str, Any] = {"batch_size": 32, "learning_rate": 0.006, "warmup_steps": 50, "weight_decay": 0.1}

_DIGITS_CARD = """---
library_name: imagegpt
license: apache-2.0
pipeline_tag: unconditional-image-generation
tags: [imagegpt, digits]
---
# Handwritten digits, 8x8

An ImageGPT that draws handwritten digits of 8x8 pixels in {colors} levels of grey, pixel by pixel, or completes their
lower part. It is small enough to ship with the package, and samples in seconds on a laptop.

| predicted by | nats per pixel of {test} held-out digits |
|---|---|
{scores}

The likelihood is exact: the palette has every level the images have, and the first pixel counts too. The neighbour
model and the histogram are counts over the same training images, smoothed on the same validation images
(`imagegpt/evaluation/baselines.py`). `imagegpt evaluate` prints this table.

## How it was made

- Command: `{command}`,
  {minutes:.1f} minutes on a CPU (threads: {threads}, torch {torch}, {date}).
- Architecture: blocks {config.n_layer}, width {config.n_embd}, heads {config.n_head}, with biases.
- Training: autoregressive; AdamW ({options.beta1}, {options.beta2}), weight decay {options.weight_decay};
  {options.num_steps} steps of {options.batch_size} images; learning rate {options.learning_rate}
  after {options.warmup_steps} steps of warm-up, then a cosine to 0; dropout {config.resid_pdrop}; no augmentation.
- The weights are a running average ({options.average_decay} a step), taken at step {result.best_step}, where validation
  was best: {result.best_nll:.4f} nats per pixel.
- Data: 1,797 images, scikit-learn's copy of the test set of "Optical Recognition of Handwritten Digits" by E. Alpaydin
  and C. Kaynak, 1998 (https://archive.ics.uci.edu/dataset/80), licence CC BY 4.0.
- Split: {train} images to train, {validation} to validate, {test} to test, each class alike, by a hash of the pixels
  (`imagegpt.training.data.load_digits`). The same writers are in all three.

## What it is for

Trying the package, tests, teaching. Not for reading digits, and not a measure of ImageGPT: so few images of 8x8 pixels
are a toy, and it knows the hands of the 13 people who wrote them for NIST.
"""


@train_app.callback()
def _recipes() -> None:
    """Train a model."""  # a callback, so that the one recipe there is keeps its name on the command line


@train_app.command()
def digits(
    out: Annotated[Path, typer.Option(help="The folder to make.", show_default=False)],
    steps: Annotated[int, typer.Option(help="Updates of the weights.")] = DIGITS_STEPS,
    seed: Annotated[int, typer.Option(help="Of the first weights, the order of the images and dropout.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the model that is there.")] = False,
) -> None:
    """Train on handwritten digits of 8x8 pixels, in minutes, and report the likelihood of held-out ones."""
    from imagegpt.training.trainer import TrainingOptions

    settings = {**DIGITS_TRAINING, "warmup_steps": min(DIGITS_TRAINING["warmup_steps"], steps // 10)}
    options = TrainingOptions(num_steps=steps, seed=seed, **settings)
    with _output.new_folder(out, force=force, replaceable=_OURS) as folder:
        command = f"imagegpt train digits --out {out.name} --steps {steps} --seed {seed}"
        _make_digits(folder, options, command)
    _shared.stderr_console().print(f"The model is in {out}. Next: imagegpt sample --model {out}", soft_wrap=True)


def _make_digits(folder: Path, options: "trainer.TrainingOptions", command: str) -> None:
    import torch

    from imagegpt.config import ImageGPTConfig
    from imagegpt.model.modeling import ImageGPTForCausalImageModeling
    from imagegpt.processing import ImageGPTImageProcessor
    from imagegpt.training.data import load_digits

    data = load_digits()
    config = ImageGPTConfig(vocab_size=data.palette.num_colors + 1, n_positions=data.side**2, **DIGITS_MODEL)
    torch.manual_seed(options.seed)
    model = ImageGPTForCausalImageModeling(config)
    result = _train_with_progress(model, data, options)
    _save(model, ImageGPTImageProcessor(palette=data.palette, size=data.side), folder)
    scores = score(model, data, name="this model")
    (folder / _CARD).write_text(_digits_card(data, config, options, result, scores, command), encoding="utf-8")
    print_scores(scores, data)


def _save(model: "ImageGPTForCausalImageModeling", processor: "ImageGPTImageProcessor", folder: Path) -> None:
    _shared.quiet_libraries()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for file in folder.iterdir():  # safetensors' file is for its owner alone, whatever the umask says
        file.chmod((folder / "config.json").stat().st_mode)


def _train_with_progress(
    model: "ImageGPTForCausalImageModeling", data: "ImageData", options: "trainer.TrainingOptions"
) -> "trainer.TrainingResult":
    from imagegpt.evaluation.likelihood import mean_nll
    from imagegpt.training.objectives import autoregressive_loss
    from imagegpt.training.trainer import train

    columns = (
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.fields[loss]} nats/pixel, validation {task.fields[nll]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_shared.stderr_console()) as bar:
        task = bar.add_task("", total=options.num_steps, loss="-", nll="-")

        def show(progress: "trainer.Progress") -> None:
            bar.update(task, completed=progress.step, loss=f"{progress.loss:.3f}")
            if progress.validation_nll is not None:
                bar.update(task, nll=f"{progress.validation_nll:.4f}")

        return train(
            model,
            data.train.ids,
            options,
            objective=autoregressive_loss,
            validate=lambda averaged: mean_nll(averaged, data.validation.ids, batch_size=len(data.validation)),
            callback=show,
        )


def _digits_card(
    data: "ImageData",
    config: Any,
    options: "trainer.TrainingOptions",
    result: "trainer.TrainingResult",
    scores: list[Score],
    command: str,
) -> str:
    """The model card, with the numbers of this very model."""
    import torch

    return _DIGITS_CARD.format(
        command=command,
        colors=data.palette.num_colors,
        train=len(data.train),
        validation=len(data.validation),
        test=len(data.test),
        scores="\n".join(f"| {one.name} ({one.note}) | {one.nats:.4f} |" for one in scores),
        minutes=result.elapsed_s / 60,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        date=time.strftime("%Y-%m-%d"),
        config=config,
        options=options,
        result=result,
    )
