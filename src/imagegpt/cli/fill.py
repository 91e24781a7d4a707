"""`imagegpt fill`: draw what a mask hides of images, with a bidirectional model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagegpt.cli import _checks, _console, _loading, _options, _output, _progress, _unreadable
from imagegpt.cli.complete import single_names
from imagegpt.common import ranges

if TYPE_CHECKING:  # torch and what stands on it take seconds, and `--help` needs none of it
    from imagegpt.pipeline.options import RuleOptions


def fill(
    images: _options.ImagesArgument,
    mask: Annotated[Path, _options.path_option("An image that is black where to draw, anywhere.", show_default=False)],
    model: Annotated[str, _options.name_option("A bidirectional (BERT) model.")] = "digits-bert",
    num: Annotated[int, _options.number(ranges.NUM_IMAGES, "Fillings of each image.")] = 8,
    seed: _options.SeedOption = 0,
    passes: Annotated[
        int, _options.number(ranges.PASSES, "Passes until all is drawn; 1 draws everything at once.")
    ] = 16,
    refills: Annotated[int, _options.number(ranges.REFILLS, "Passes that draw some of it again.")] = 16,
    share: Annotated[float, _options.number(ranges.REFILL_SHARE, "How much of it each of those draws again.")] = 0.15,
    temperature: _options.TemperatureOption = 1.0,
    top_k: _options.TopKOption = None,
    top_p: _options.TopPOption = None,
    min_p: _options.MinPOption = None,
    out: Annotated[Path, _options.path_option("Where the picture of all fillings goes.")] = Path("filled.png"),
    singles: _options.SinglesOption = None,
    force: _options.ForceOption = False,
    max_broken: _options.MaxBrokenOption = 0.05,
    device: _options.DeviceOption = None,
    revision: _options.RevisionOption = None,
) -> None:
    """Draw what a mask hides of images, wherever it is, several times.

    An image is cropped to a square and reduced to the model's size and colours first. What is kept stays as it is.
    Broken images are left out and listed in broken-images.txt beside the picture; the exit code is 1 then.
    """
    _output.check_png(out, force)
    _output.check_num(num * len(images), "fillings")
    places = _output.check_singles(singles, single_names(images, num), force)
    if out.absolute() in {place.absolute() for place in places}:
        raise ValueError(f"--out is {out}, which is also the name of a single filling: choose another name")
    _checks.check_images([*images, mask])
    loading = _loading.Loading(
        model=model, revision=revision, device=device, precision=None, decoder="sequential", max_memory=None
    )
    pipe = loading.pipeline()
    from imagegpt.figures.grids import completion_grid, completion_grid_size
    from imagegpt.images.masks import read_mask
    from imagegpt.sampling import FillSchedule, SamplingRules

    options: RuleOptions = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    rules, schedule = SamplingRules(**options), FillSchedule(passes=passes, refills=refills, share=share)
    kept = read_mask(mask, pipe.processor.size["height"], pipe.processor.size["width"], pipe.processor.resize_mode)
    reduced, broken = _unreadable.read_images(images, lambda path: pipe.reduce(path)[0], max_broken)
    originals = list(reduced.values())
    completion_grid_size(len(originals), num, originals[0].size, has_labels=True)  # checks that there is memory for it
    with _progress.pixel_progress("filling", "passes") as progress:
        filled = pipe.fill(originals, kept, num=num, seed=seed, schedule=schedule, progress=progress, **options)
    drawn = [image for several in filled for image in several]
    facts = {"model": model, "seed": seed, "rules": rules, "keep": f"{int(kept.sum())} pixels", "schedule": schedule}
    grid = completion_grid(originals, kept, filled, [images[index].name for index in reduced])
    singles_of_read = [places[index * num + copy] for index in reduced for copy in range(num)] if places else []
    _output.write_pngs({**dict(zip(singles_of_read, drawn, strict=False)), out: grid}, facts)
    _console.echo(f"{num} fillings of {len(originals)} {'image' if len(originals) == 1 else 'images'}: {out}")
    if singles is not None:
        _console.echo(f"one by one: {singles}")
    if broken:
        _unreadable.list_broken(broken, out.parent)
        raise typer.Exit(_unreadable.STATUS)
