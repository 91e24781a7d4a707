"""`imagegpt palette fit`: choose the colours for some pictures, and show what they make of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagegpt.cli import _checks, _console, _options, _output, _progress, _unreadable
from imagegpt.common import ranges
from imagegpt.common.shell import command, free_name
from imagegpt.data.broken_images import BROKEN_FILE
from imagegpt.images.palette import PALETTE_FILE

if TYPE_CHECKING:  # torch and what stands on it take seconds, and `--help` needs none of it
    from imagegpt.data.palettes import FittedPalette

palette_app = typer.Typer(help="Choose the colours of a model.", no_args_is_help=True)

SOURCE_HELP = (
    "A folder of images (with a subfolder for each class, or not), .npy, .npz or .parquet, CIFAR's own files, a folder "
    "of datasets' save_to_disk, owner/name on the hub, or digits."
)

_PICTURES = ("palette.png", "before_after.png")
_SHOWN = 32  # images before and after


@palette_app.callback()
def _palettes() -> None:
    """Choose the colours of a model."""  # a callback, so that the one command there is keeps its name


@palette_app.command(no_args_is_help=True)
def fit(
    src: Annotated[str, _options.name_argument(SOURCE_HELP)],
    out: Annotated[Path, _options.path_option("The folder to make.", show_default=False)],
    colors: Annotated[int, _options.number(ranges.COLORS, "How many colours.")] = 512,
    size: Annotated[int, _options.number(ranges.SIDE, "Pixels a side that images are brought to first.")] = 32,
    seed: Annotated[int, _options.number(ranges.FITTING_SEED, "Of the sample of images and pixels.")] = 0,
    grey: Annotated[bool, typer.Option("--grey", help="Levels of grey instead of colours.")] = False,
    split: Annotated[str | None, typer.Option(help="Which part, if the images have parts: train.")] = None,
    max_images: Annotated[
        int | None,
        _options.number(ranges.SOME_IMAGES, "A random sample of so many.", show_default="all images"),
    ] = None,
    max_broken: _options.MaxBrokenOption = 0.05,
    force: _options.ForceOption = False,
) -> None:
    """Choose the colours that serve some images best, and draw them.

    Broken images are left out and listed in broken-images.txt; the exit code is 1 then.
    """
    _checks.check_source(src)
    with _output.new_folder(out, force=force, replaceable={PALETTE_FILE, BROKEN_FILE, *_PICTURES}) as folder:
        with _console.working(f"opening {src}"):
            from imagegpt.data.broken_images import write_list
            from imagegpt.data.palettes import fit_palette
            from imagegpt.data.sources.registry import open_images
            from imagegpt.images.processor import ImageGPTImageProcessor

            source = open_images(src, split=split)
        with _progress.image_progress("reading") as progress:
            fitted = fit_palette(
                source,
                colors,
                ImageGPTImageProcessor(size=size),
                seed=seed,
                grey=grey,
                max_images=max_images,
                max_broken=max_broken,
                on_progress=progress,
            )
        fitted.palette.save(folder / PALETTE_FILE)
        if fitted.broken:
            write_list(folder / BROKEN_FILE, fitted.broken)
        _draw(fitted, folder)
    _tell(fitted, src, out, size)
    if fitted.broken:
        raise typer.Exit(_unreadable.STATUS)


def _draw(fitted: "FittedPalette", folder: Path) -> None:
    from PIL import Image

    from imagegpt.figures.grids import before_after_grid, palette_picture

    every = -(-len(fitted.examples) // _SHOWN)
    before = fitted.examples[::every]
    after = [fitted.palette.decode(fitted.palette.encode(image)) for image in before]
    pictures = (
        palette_picture(fitted.palette.rgb),
        before_after_grid(list(map(Image.fromarray, before)), list(map(Image.fromarray, after))),
    )
    facts = {"palette": fitted.palette.fingerprint}
    _output.write_pngs({folder / name: picture for name, picture in zip(_PICTURES, pictures, strict=True)}, facts)


def _tell(fitted: "FittedPalette", src: str, out: Path, size: int) -> None:
    kind = "levels of grey" if fitted.palette.is_grey else "colours"
    _console.echo(f"{fitted.palette.num_colors} {kind} from {fitted.num_images:,} images: {out}")
    _console.echo(f"as they serve {len(fitted.examples):,} of them: {fitted.report}")
    _unreadable.tell_broken(fitted.broken, out / BROKEN_FILE)
    resized = [] if size == 32 else ["--size", str(size)]
    _console.say_next(command("encode", src, free_name("encoded"), "--palette", out, *resized))
