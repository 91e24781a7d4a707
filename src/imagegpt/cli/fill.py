"""`imagegpt fill`: draw what a mask hides of images, with a bidirectional model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from imagegpt import ranges
from imagegpt.cli import _checks, _console, _loading, _options, _output, _progress
from imagegpt.cli.complete import single_names

if TYPE_CHECKING:  # torch and what stands on it take seconds, and `--help` needs none of it
    from imagegpt.pipeline_options import RuleOptions


def fill(
    images: Annotated[list[Path], _options.path_argument("Images of any kind and size.", metavar="IMAGE...")],
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
    singles: Annotated[Path | None, _options.path_option("A folder for each filling as a PNG of its own.")] = None,
    force: _options.ForceOption = False,
    device: _options.DeviceOption = None,
    revision: _options.RevisionOption = None,
) -> None:
    """Draw what a mask hides of images, wherever it is, several times.

    An image is cropped to a square and reduced to the model's size and colours first. What is kept stays as it is.
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
    from imagegpt.figures import completion_grid, completion_grid_size
    from imagegpt.masks import read_mask
    from imagegpt.sampling import FillSchedule, SamplingRules

    options: RuleOptions = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    rules, schedule = SamplingRules(**options), FillSchedule(passes=passes, refills=refills, share=share)
    kept = read_mask(mask, pipe.processor.size["height"], pipe.processor.size["width"], pipe.processor.resize_mode)
    originals = pipe.reduce(images)
    completion_grid_size(len(images), num, originals[0].size, has_labels=True)  # checks that there is memory for it
    with _progress.pixel_progress("filling", "passes") as progress:
        filled = pipe.fill(images, kept, num=num, seed=seed, schedule=schedule, progress=progress, **options)
    drawn = [image for several in filled for image in several]
    facts = {"model": model, "seed": seed, "rules": rules, "keep": f"{int(kept.sum())} pixels", "schedule": schedule}
    grid = completion_grid(originals, kept, filled, [path.name for path in images])
    _output.write_pngs({**dict(zip(places, drawn, strict=False)), out: grid}, facts)
    _console.echo(f"{num} fillings of {len(images)} {'image' if len(images) == 1 else 'images'}: {out}")
    if singles is not None:
        _console.echo(f"one by one: {singles}")
