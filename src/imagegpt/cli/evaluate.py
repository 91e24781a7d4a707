"""`imagegpt evaluate`: the exact likelihood of held-out images, beside two baselines."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from imagegpt.cli import _shared

if TYPE_CHECKING:  # torch and what stands on it take seconds, and `--help` needs none of it
    from imagegpt.model.modeling import ImageGPTForCausalImageModeling
    from imagegpt.palette import ColorPalette
    from imagegpt.training.data import ImageData


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well something predicts the test images."""

    name: str  # for people
    nats: float  # per pixel
    note: str  # what it is, in a few words


def evaluate(
    model: Annotated[str, typer.Argument(help="A model's name or folder.")] = "digits",
    data: Annotated[str, typer.Argument(help="The data set whose test images are scored.")] = "digits",
) -> None:
    """Print how many nats a model needs for a pixel of images it has never seen, beside two baselines."""
    with _shared.working(f"reading {model} and {data}"):
        from imagegpt.checkpoints.loading import find_folder, load_model, load_processor
        from imagegpt.training.data import load_data

        _shared.quiet_libraries()
        images = load_data(data)
        folder = find_folder(model)
        loaded = load_model(folder)
        check_match(model, loaded, load_processor(folder, loaded.config).palette, images)
    with _shared.working("scoring"):
        scores = score(loaded, images, name=model)
    print_scores(scores, images)


def check_match(
    name: str, model: "ImageGPTForCausalImageModeling", palette: "ColorPalette | None", data: "ImageData"
) -> None:
    """Refuse a model whose ids do not mean what the data's mean.

    Raises: ValueError if the number of pixels or the palettes differ, or the model has none.
    """
    pixels = data.side**2
    if model.config.n_positions != pixels:
        raise ValueError(
            f"the model {name} makes images of {model.config.n_positions} pixels, those of {data.name} have {pixels}: "
            "choose a model made for them"
        )
    if palette != data.palette:
        raise ValueError(
            f"the model {name} has another palette than {data.name}, so their likelihoods mean different things: "
            "choose a model made for them"
        )


def score(model: "ImageGPTForCausalImageModeling", data: "ImageData", *, name: str) -> list[Score]:
    """The test likelihoods of a model, of both baselines, and of knowing nothing, best first.

    The baselines count over the training images and are smoothed on the validation images.
    """
    from imagegpt.evaluation.baselines import NeighbourModel, PositionHistogram
    from imagegpt.evaluation.likelihood import mean_nll

    num_colors = data.palette.num_colors
    train, validation, test = (part.ids.numpy() for part in (data.train, data.validation, data.test))
    neighbours = NeighbourModel.fit(train, validation, num_colors=num_colors, side=data.side)
    histogram = PositionHistogram.fit(train, validation, num_colors=num_colors)
    scores = [
        Score(name=name, nats=mean_nll(model, data.test.ids), note=f"{model.num_parameters():,} parameters"),
        Score(name="neighbours", nats=float(neighbours.pixel_nll(test).mean()), note="left and upper pixel, position"),
        Score(name="histogram", nats=float(histogram.pixel_nll(test).mean()), note="position"),
        Score(name="uniform", nats=math.log(num_colors), note=f"all {num_colors} colours alike"),
    ]
    return sorted(scores, key=lambda one: one.nats)


def print_scores(scores: list[Score], data: "ImageData") -> None:
    """Show them as a table on stdout."""
    table = Table(title=f"{len(data.test)} test images of {data.name}", title_justify="left")
    table.add_column("predicted by")
    table.add_column("nats/pixel", justify="right")
    table.add_column("bits/pixel", justify="right")
    table.add_column("knowing")
    for one in scores:
        table.add_row(one.name, f"{one.nats:.4f}", f"{one.nats / math.log(2):.4f}", one.note)
    Console().print(table)
