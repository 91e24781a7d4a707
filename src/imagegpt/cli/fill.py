"""`imagegpt fill`: draw what a mask hides of images, with a bidirectional model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagegpt import ranges
from imagegpt.cli import _output, _progress, _shared
from imagegpt.cli.complete import single_names

if TYPE_CHECKING:  # torch and what stands on it take seconds, and `--help` needs none of it
    from imagegpt.pipeline_options import RuleOptions


def fill(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Images of any kind and size.")],
    mask: Annotated[Path, typer.Option(help="An image that is black where to draw, anywhere.", show_default=False)],
    model: Annotated[str, typer.Option(help="A bidirectional (BERT) model.")] = "digits-bert",
    num: Annotated[int, _shared.number(ranges.NUM_IMAGES, "Fillings of each image.")] = 8,
    seed: _shared.SeedOption = 0,
    passes: Annotated[
        int, _shared.number(ranges.PASSES, "Passes until all is drawn; 1 draws everything at once.")
    ] = 16,
    refills: Annotated[int, _shared.number(ranges.REFILLS, "Passes that draw some of it again.")] = 16,
    share: Annotated[float, _shared.number(ranges.REFILL_SHARE, "How much of it each of those draws again.")] = 0.15,
    temperature: _shared.TemperatureOption = 1.0,
    top_k: _shared.TopKOption = None,
    top_p: _shared.TopPOption = None,
    min_p: _shared.MinPOption = None,
    out: Annotated[Path, typer.Option(help="Where the picture of all fillings goes.")] = Path("filled.png"),
    singles: Annotated[Path | None, typer.Option(help="A folder for each filling as a PNG of its own.")] = None,
    force: _shared.ForceOption = False,
    device: _shared.DeviceOption = None,
    revision: _shared.RevisionOption = None,
) -> None:
    """Draw what a mask hides of images, wherever it is, several times.

    An image is cropped to a square and reduced to the model's size and colours first. What is kept stays as it is.
    """
    _output.check_png(out, force)
    _output.check_num(num * len(images), "fillings")
    places = _output.check_singles(singles, single_names(images, num), force)
    if out.absolute() in {place.absolute() for place in places}:
        raise ValueError(f"--out is {out}, which is also the name of a single filling: choose another name")
    for path in [*images, mask]:
        if not path.is_file():
            raise FileNotFoundError(f"there is no image {path}: check the path")
    loading = _shared.Loading(
        model=model, revision=revision, device=device, precision=None, decoder="sequential", max_memory=None
    )
    pipe = loading.pipeline()
    from imagegpt.figures import completion_grid, completion_grid_size
    from imagegpt.masks import read_mask
    from imagegpt.sampling import FillSchedule, SamplingRules

    options: RuleOptions = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    rules, schedule = SamplingRules(**options), FillSchedule(passes=passes, refills=refills, share=share)
    kept = read_mask(mask, pipe.processor.size["height"], pipe.processor.size["width"])
    originals = pipe.reduce(images)
    completion_grid_size(len(images), num, originals[0].size, has_labels=True)  # checks that there is memory for it
    with _progress.pixel_progress("filling", "passes") as progress:
        filled = pipe.fill(images, mask, num=num, seed=seed, schedule=schedule, progress=progress, **options)
    drawn = [image for several in filled for image in several]
    facts = {"model": model, "seed": seed, "rules": rules, "keep": f"{int(kept.sum())} pixels", "schedule": schedule}
    grid = completion_grid(originals, kept, filled, [path.name for path in images])
    _output.write_pngs({**dict(zip(places, drawn, strict=False)), out: grid}, facts)
    typer.echo(f"{num} fillings of {len(images)} {'image' if len(images) == 1 else 'images'}: {out}")
    if singles is not None:
        typer.echo(f"one by one: {singles}")
