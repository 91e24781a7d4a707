"""`imagegpt fill`: sample the hidden pixels of images with a bidirectional model."""

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagegpt.cli import _broken_images, _checks, _console, _loading, _options, _output, _progress
from imagegpt.cli.complete import single_names
from imagegpt.common import ranges

if TYPE_CHECKING:  # imported late: torch takes seconds, and `--help` does not need it
    from imagegpt.pipeline.options import RuleOptions

_MaskOption = Annotated[
    Path, _options.path_option("An image that is black at the pixels to sample.", show_default=False)
]
_PassesOption = Annotated[
    int, _options.number_option(ranges.PASSES, "Passes that fill the hidden pixels; 1 samples all of them at once.")
]
_RefillsOption = Annotated[int, _options.number_option(ranges.REFILLS, "Further passes that resample some of them.")]
_RefillFractionOption = Annotated[
    float, _options.number_option(ranges.REFILL_FRACTION, "Fraction of the hidden pixels that each of these resamples.")
]


def fill(
    images: _options.ImagesArgument,
    mask: _MaskOption,
    model: Annotated[str, _options.name_option("A bidirectional (BERT) model.")] = "digits-bert",
    num: Annotated[int, _options.number_option(ranges.NUM_IMAGES, "Samples per image.")] = 8,
    seed: _options.SeedOption = 0,
    passes: _PassesOption = 16,
    refills: _RefillsOption = 16,
    refill_fraction: _RefillFractionOption = 0.15,
    temperature: _options.TemperatureOption = 1.0,
    top_k: _options.TopKOption = None,
    top_p: _options.TopPOption = None,
    min_p: _options.MinPOption = None,
    out: Annotated[Path, _options.path_option("The picture of all samples.")] = Path("filled.png"),
    singles: _options.SinglesOption = None,
    force: _options.ForceOption = False,
    max_broken: _options.MaxBrokenOption = 0.05,
    device: _options.DeviceOption = None,
    revision: _options.RevisionOption = None,
    as_json: _options.JsonOption = False,
) -> None:
    """Sample the hidden pixels of images, anywhere in the image, several times.

    Each image is first cropped to a square and reduced to the model's size and palette. Visible pixels do not change.
    Broken images are skipped and listed in broken-images.txt beside the picture; the exit code is then 1.
    """
    paths = _check_paths(images, mask, num, out, singles, force)
    pipe = _loading.ModelOptions(model=model, revision=revision, device=device).load_pipeline()
    from imagegpt.figures.grids import completion_grid, completion_grid_size
    from imagegpt.images.masks import read_mask
    from imagegpt.sampling import FillSchedule, SamplingRules

    options: RuleOptions = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    schedule = FillSchedule(passes=passes, refills=refills, refill_fraction=refill_fraction)
    visible = read_mask(mask, pipe.processor.size["height"], pipe.processor.size["width"], pipe.processor.resize_mode)
    quantized, broken = _broken_images.read_images(images, lambda path: pipe.quantize(path)[0], max_broken)
    originals = list(quantized.values())
    completion_grid_size(len(originals), num, originals[0].size, has_labels=True)  # checks the size of the picture
    with _progress.pixel_progress("filling", "passes") as progress:
        samples = pipe.fill(originals, visible, num=num, seed=seed, schedule=schedule, progress=progress, **options)
    facts: dict[str, Any] = {"model": model, "seed": seed, "rules": SamplingRules(**options)}
    facts |= {"keep": f"{visible.sum()} pixels", "schedule": schedule}
    grid = completion_grid(originals, visible, samples, [images[index].name for index in quantized])
    single_paths = [path for index in quantized for path in paths[index * num : (index + 1) * num]]
    _output.write_pngs({**dict(zip(single_paths, chain.from_iterable(samples), strict=False)), out: grid}, facts)
    counts = {"num_images": len(originals), "num_samples": num, "num_broken": len(broken)}
    _print_result(counts, out, singles, single_paths, as_json)
    _broken_images.write_broken_list(broken, out.parent)
    if broken:
        raise typer.Exit(_broken_images.EXIT_STATUS)


def _print_result(counts: dict[str, int], out: Path, singles: Path | None, paths: list[Path], as_json: bool) -> None:
    if as_json:
        _console.print_json({**counts, "path": str(out), "singles": [str(path) for path in paths]})
        return
    num, num_images = counts["num_samples"], counts["num_images"]
    samples, images = "sample" if num == 1 else "samples", "image" if num_images == 1 else "images"
    _console.echo(f"{num} {samples} of {num_images} {images}: {out}")
    if singles is not None:
        _console.echo(f"single samples: {singles}")


def _check_paths(images: list[Path], mask: Path, num: int, out: Path, singles: Path | None, force: bool) -> list[Path]:
    """Check that all inputs exist and all outputs can be written; return the paths of single samples."""
    _output.check_png(out, force)
    _output.check_image_count(num * len(images), "samples")
    paths = _output.check_singles(singles, single_names(images, num), force)
    if out.absolute() in {path.absolute() for path in paths}:
        raise ValueError(f"--out is {out}, which is also the name of a single sample: choose another name")
    _checks.check_images([*images, mask])
    return paths
