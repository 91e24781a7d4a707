"""`imagegpt evaluate`: the exact likelihood of held-out images, beside two baselines."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from imagegpt.cli import _broken_images, _checks, _console, _loading, _options, _progress

if TYPE_CHECKING:  # torch takes seconds to import, and `--help` does not need it
    from imagegpt.evaluation.scoring import Score


def evaluate(
    model: Annotated[str, _options.name_argument("A model's name or folder.", show_default=True)] = "digits",
    data: Annotated[
        str,
        _options.name_argument(
            "digits, a folder written by `imagegpt encode`, or any other source of images.", show_default=True
        ),
    ] = "digits",
    split: Annotated[
        Literal["train", "validation", "test"] | None,
        typer.Option(help="The split to score.", show_default="test if there is one, else validation"),
    ] = None,
    all_images: Annotated[
        bool,
        typer.Option("--all", help="Score all images, including those the model was trained on; without baselines."),
    ] = False,
    max_broken: _options.MaxBrokenOption = 0.05,
    device: _options.DeviceOption = None,
    as_json: _options.JsonOption = False,
) -> None:
    """Print how many nats a model needs for a pixel of images it has never seen, beside two baselines.

    Images that it was trained on are split as they were then; other images without splits are split by the same hash.
    Broken images are skipped and listed in broken-images.txt; the exit code is then 1.
    """
    if all_images and split is not None:
        raise ValueError(f"--all and --split {split} were given: give one of them")
    _checks.check_model(model)
    _checks.check_source(data)
    with _console.spinner(f"reading {model} and {data}"):
        from imagegpt.evaluation.evaluate import evaluate as evaluate_model

        _loading.quiet_libraries()
    options = {"split": split, "all_images": all_images, "max_broken": max_broken, "device": device}
    with _progress.image_progress("scoring") as progress:
        evaluation = evaluate_model(model, data, progress=progress, **options)
    for note in evaluation.notes:
        _console.print_stderr(note)
    _broken_images.write_broken_list(evaluation.broken, Path())
    if as_json:
        _console.print_json(evaluation.to_dict())
    else:
        print_scores(evaluation.scores, evaluation.num_images, data, evaluation.description)
    if evaluation.broken:
        raise typer.Exit(_broken_images.EXIT_STATUS)


def print_scores(scores: "Sequence[Score]", num_images: int, data: str, description: str) -> None:
    """Print scores as a table on stdout, for `evaluate` and `train`; `description` says which images."""
    table = Table(title=_console.plain_text(f"{num_images:,} images of {data}: {description}"), title_justify="left")
    table.add_column("predicted by")
    table.add_column("nats/pixel", justify="right")
    table.add_column("bits/pixel", justify="right")
    table.add_column("knowing")
    for one in scores:
        _console.add_row(table, one.name, f"{one.nats:.4f}", f"{one.bits:.4f}", one.note)
    _console.print_table(table)
