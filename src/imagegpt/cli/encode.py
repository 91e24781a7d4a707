"""`imagegpt encode`: turn pictures into ids of a palette, once, for training.

The folder that is there may be an encoding that was stopped: the same command goes on.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from imagegpt.checkpoints.registry import resolve
from imagegpt.cli import _checks, _console, _loading, _options, _progress, _unreadable
from imagegpt.cli.palette import SOURCE_HELP
from imagegpt.common import ranges
from imagegpt.common.shell import command, free_name, setting

if TYPE_CHECKING:  # torch and what stands on it take seconds, and `--help` needs none of it
    from imagegpt.images.palette import ColorPalette
    from imagegpt.jobs.encode import EncodingReport


def encode(
    src: Annotated[str, _options.name_argument(SOURCE_HELP)],
    out: Annotated[Path, _options.path_argument("The folder to make, or to go on with.")],
    palette: Annotated[
        str, _options.name_option("A .npy palette, a folder with one, or a model's name.", show_default=False)
    ],
    size: Annotated[int, _options.number(ranges.SIDE, "Pixels a side.")] = 32,
    resize: Annotated[
        Literal["crop", "squash"], typer.Option(help="Cut the longer side, or distort the image.")
    ] = "crop",
    split: Annotated[str | None, typer.Option(help="Which part, if the images have parts.", show_default="all")] = None,
    workers: Annotated[int | None, _options.number(ranges.WORKERS, "Processes.", show_default="one a core")] = None,
    max_broken: _options.MaxBrokenOption = 0.05,
) -> None:
    """Turn images into ids of a palette, into a folder to train on that `datasets.load_from_disk` opens, too.

    It may be killed: the same command goes on. Broken images are left out and listed in encoding.json; the exit code is
    1 then.
    """
    _checks.check_source(src)
    _checks.check_palette(palette)
    _checks.check_parent(out)
    with _console.working("loading"):
        from imagegpt.images.processor import ImageGPTImageProcessor
        from imagegpt.jobs.encode import encode_images

        _loading.quiet_libraries()
        processor = ImageGPTImageProcessor(find_palette(palette), size=size, resize_mode=resize)
    with _progress.stopping(lambda: _how_to_go_on(out)), _progress.image_progress("encoding") as progress:
        report = encode_images(
            src, out, processor, split=split, num_workers=workers, max_broken=max_broken, on_progress=progress
        )
    _tell(report, out)
    if report.broken:
        raise typer.Exit(_unreadable.STATUS)


def find_palette(said: str) -> "ColorPalette":
    """The palette in a file or folder, or that of a model by its name.

    Raises: ValueError or OSError, in one sentence, if there is none.
    """
    from imagegpt.checkpoints.loading import find_folder
    from imagegpt.images.palette import ColorPalette

    _checks.check_palette(said)
    if Path(said).is_file():
        return ColorPalette.load(Path(said))
    source = resolve(said)
    return ColorPalette.load(find_folder(said, weights=False) if source.folder is None else source.folder)


def _how_to_go_on(out: Path) -> str:
    return f"stopped: the same command goes on from what is in {out}" if out.is_dir() else "stopped"


def _tell(report: "EncodingReport", out: Path) -> None:
    with_splits = any(part.split is not None for part in report.parts)
    table = Table(
        *(["split"] if with_splits else []), "images", "encoded", "broken", "classes", box=None, pad_edge=False
    )
    for part in report.parts:
        classes = "-" if part.classes is None else f"{len(part.classes):,}"
        numbers = [f"{part.num_source:,}", f"{part.num_images:,}", f"{len(part.broken):,}", classes]
        _console.add_row(table, *([str(part.split)] if with_splits else []), *numbers)
    _console.print_table(table)
    manifests = (str(part.folder / "encoding.json") for part in report.parts if part.broken)
    _unreadable.tell_broken(report.broken, " and ".join(manifests))
    num_new = sum(part.num_new for part in report.parts)
    if num_new:
        _console.echo(f"{num_new:,} images in {report.elapsed_s:.1f} s, {report.images_per_s:,.0f} images/s: {out}")
    else:
        _console.echo(f"nothing was left to do: {out}")
    chosen = setting("data.train", out)
    _console.say_next(command("train", "pictures", "--set", chosen, "--out", free_name("model")))
