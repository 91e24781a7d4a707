"""`imagegpt evaluate`: the exact likelihood of held-out images, beside two baselines."""

import math
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from imagegpt.cli import _progress, _shared

if TYPE_CHECKING:  # torch and what stands on it take seconds, and `--help` needs none of it
    from imagegpt.evaluation.comparison import Score


def evaluate(
    model: Annotated[str, typer.Argument(help="A model's name or folder.")] = "digits",
    data: Annotated[
        str, typer.Argument(help="digits, a folder that `imagegpt encode` made, or images of any kind it reads.")
    ] = "digits",
    everything: Annotated[
        bool,
        typer.Option("--all", help="Score all images, not only the test part or what is set aside; no baselines then."),
    ] = False,
    device: _shared.DeviceOption = None,
) -> None:
    """Print how many nats a model needs for a pixel of images it has never seen, beside two baselines.

    Of images without parts 4 % are taken, the same that training sets aside; --all takes all.
    """
    with _shared.working(f"reading {model} and {data}"):
        from imagegpt.checkpoints.loading import find_folder, load_config, load_processor
        from imagegpt.pipeline_options import choose_device
        from imagegpt.runs.scores import score_all, score_folder
        from imagegpt.training.images import data_for

        _shared.quiet_libraries()
        chosen = str(choose_device(device))
        folder = find_folder(model)
        config = load_config(folder)
        images = data_for(data, model, load_processor(folder, config))
    with _progress.image_progress("scoring") as progress:
        if everything:
            scores, num_images = score_all(folder, images, name=model, device=chosen, progress=progress)
        else:
            scores = score_folder(folder, images, name=model, device=chosen, progress=progress)
            num_images = len(images.test or images.validation)
    which = "" if everything else "test " if images.test else "held-out "
    print_scores(scores, num_images, data, which)


def print_scores(scores: list["Score"], num_images: int, data: str, which: str) -> None:
    """Show scores as a table on stdout; `which` says which images of `data` they are of."""
    table = Table(title=f"{num_images:,} {which}images of {data}", title_justify="left")
    table.add_column("predicted by")
    table.add_column("nats/pixel", justify="right")
    table.add_column("bits/pixel", justify="right")
    table.add_column("knowing")
    for one in scores:
        table.add_row(one.name, f"{one.nats:.4f}", f"{one.nats / math.log(2):.4f}", one.note)
    Console().print(table)
