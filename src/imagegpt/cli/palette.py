"""`imagegpt palette fit`: fit a palette to images, and show its colours and what it does to the images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagegpt.cli import _broken_images, _checks, _console, _options, _output, _progress
from imagegpt.common import ranges
from imagegpt.common.shell import shell_command, unused_path
from imagegpt.data.broken_images import BROKEN_FILE
from imagegpt.images.palette import PALETTE_FILE

if TYPE_CHECKING:  # torch takes seconds to import, and `--help` does not need it
    from imagegpt.data.palettes import FittedPalette

app = typer.Typer(help="Fit the palette of a model.", no_args_is_help=True)

SOURCE_HELP = (
    "A folder of images (with or without a subfolder for each class), .npy, .npz, .parquet or WebDataset .tar, files "
    "of CIFAR or MNIST, a folder of datasets' save_to_disk, owner/name on the hub, or digits."
)

_FIGURES = ("palette.png", "before_after.png")
_MAX_SHOWN = 32  # images before and after


@app.callback()
def _palette() -> None:
    """Fit the palette of a model."""  # without a callback, typer would drop the name of a group's only command


@app.command(no_args_is_help=True)
def fit(
    src: Annotated[str, _options.name_argument(SOURCE_HELP)],
    out: Annotated[Path, _options.path_option("Folder for the palette; created if missing.", show_default=False)],
    colors: Annotated[int, _options.number_option(ranges.COLORS, "Number of colours.")] = 512,
    size: Annotated[int, _options.number_option(ranges.IMAGE_SIDE, "Height and width to resize images to.")] = 32,
    seed: Annotated[int, _options.number_option(ranges.FITTING_SEED, "Of k-means and of the samples.")] = 0,
    grey: Annotated[bool, typer.Option("--grey", help="Fit levels of grey instead of colours.")] = False,
    split: Annotated[str | None, typer.Option(help="The split to fit to, if the images have splits.")] = None,
    max_images: Annotated[
        int | None,
        _options.number_option(ranges.DATASET_SIZE, "Use a random sample of this size.", show_default="all images"),
    ] = None,
    max_broken: _options.MaxBrokenOption = 0.05,
    force: _options.ForceOption = False,
    as_json: _options.JsonOption = False,
) -> None:
    """Fit a palette to images and show how well it reproduces them.

    Broken images are skipped and listed in broken-images.txt; the exit code is then 1.
    """
    _checks.check_source(src)
    with _output.new_folder(out, force=force, replaceable={PALETTE_FILE, BROKEN_FILE, *_FIGURES}) as folder:
        with _console.spinner(f"opening {src}"):
            from imagegpt.data.palettes import fit_palette
            from imagegpt.data.sources.registry import open_images
            from imagegpt.images.processor import ImageGPTImageProcessor

            source = open_images(src, split=split)
        options = {"seed": seed, "grey": grey, "max_images": max_images, "max_broken": max_broken}
        with _progress.image_progress("reading") as progress:
            fitted = fit_palette(source, colors, ImageGPTImageProcessor(size=size), on_progress=progress, **options)
        _save(fitted, folder)
    if as_json:
        _console.print_json({"folder": str(out), **fitted.to_dict()})
    else:
        kind = "levels of grey" if fitted.palette.is_grey else "colours"
        _console.echo(f"{fitted.palette.num_colors} {kind} from {fitted.num_images:,} images: {out}")
        _console.echo(f"reproduction of {len(fitted.examples):,} of them: {fitted.report}")
    _broken_images.report_broken(fitted.broken, out / BROKEN_FILE)
    resized = [] if size == 32 else ["--size", str(size)]
    _console.suggest_command(shell_command("encode", src, unused_path("encoded"), "--palette", out, *resized))
    if fitted.broken:
        raise typer.Exit(_broken_images.EXIT_STATUS)


def _save(fitted: "FittedPalette", folder: Path) -> None:
    """Write the palette, the list of broken images, and two figures."""
    from PIL import Image

    from imagegpt.data.broken_images import write_list
    from imagegpt.figures.grids import before_after_grid, palette_grid

    fitted.palette.save(folder / PALETTE_FILE)
    if fitted.broken:
        write_list(folder / BROKEN_FILE, fitted.broken)
    before = fitted.examples[:: -(-len(fitted.examples) // _MAX_SHOWN)]
    after = [fitted.palette.decode(fitted.palette.encode(image)) for image in before]
    figures = (
        palette_grid(fitted.palette.rgb),
        before_after_grid(list(map(Image.fromarray, before)), list(map(Image.fromarray, after))),
    )
    metadata = {"palette": fitted.palette.fingerprint}
    _output.write_pngs({folder / name: figure for name, figure in zip(_FIGURES, figures, strict=True)}, metadata)
