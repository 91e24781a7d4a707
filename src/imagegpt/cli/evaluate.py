"""`imagegpt evaluate`: the exact likelihood of held-out images, beside two baselines."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from imagegpt.cli import _checks, _console, _loading, _options, _progress, _unreadable

if TYPE_CHECKING:  # torch and what stands on it take seconds, and `--help` needs none of it
    from imagegpt.evaluation.comparison import Score


def evaluate(
    model: Annotated[str, _options.name_argument("A model's name or folder.", show_default=True)] = "digits",
    data: Annotated[
        str,
        _options.name_argument(
            "digits, a folder that `imagegpt encode` made, or images of any kind it reads.", show_default=True
        ),
    ] = "digits",
    part: Annotated[
        Literal["train", "validation", "test"] | None,
        typer.Option(help="Which part of the images.", show_default="test if there is one, else validation"),
    ] = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Score all images, also those the model was trained on; no baselines then."),
    ] = False,
    max_broken: _options.MaxBrokenOption = 0.05,
    device: _options.DeviceOption = None,
) -> None:
    """Print how many nats a model needs for a pixel of images it has never seen, beside two baselines.

    Images that it was trained with are in the same parts as then; others without parts are split as those were. Broken
    ones are left out and listed in broken-images.txt; the exit code is 1 then.
    """
    if everything and part is not None:
        raise ValueError(f"--all and --part {part} were given: give one of them")
    _checks.check_model(model)
    _checks.check_source(data)
    with _console.working(f"reading {model} and {data}"):
        from imagegpt.checkpoints.loading import find_folder
        from imagegpt.pipeline.options import choose_device
        from imagegpt.training.scores import data_for_folder, score_all, score_folder

        _loading.quiet_libraries()
        chosen = str(choose_device(device))
        folder = find_folder(model)
        images = data_for_folder(data, folder, model, max_broken=max_broken)
        chosen_part = "" if everything else images.choose_part(part)
    for note in images.notes:
        _console.say(note)
    _unreadable.list_broken(images.broken, Path())
    with _progress.image_progress("scoring") as progress:
        if everything:
            scores, num_images = score_all(folder, images, name=model, device=chosen, progress=progress)
        else:
            scores = score_folder(folder, images, part=chosen_part, name=model, device=chosen, progress=progress)
            num_images = len(images.parts[chosen_part])
    which = "all, also those the model was trained on, if any" if everything else images.describe(chosen_part)
    print_scores(scores, num_images, data, which)
    if images.broken:
        raise typer.Exit(_unreadable.STATUS)


def print_scores(scores: list["Score"], num_images: int, data: str, which: str) -> None:
    """Show scores as a table on stdout; `which` says which images of `data` they are of."""
    table = Table(title=_console.plain(f"{num_images:,} images of {data}: {which}"), title_justify="left")
    table.add_column("predicted by")
    table.add_column("nats/pixel", justify="right")
    table.add_column("bits/pixel", justify="right")
    table.add_column("knowing")
    for one in scores:
        _console.add_row(table, one.name, f"{one.nats:.4f}", f"{one.nats / math.log(2):.4f}", one.note)
    _console.print_table(table)
