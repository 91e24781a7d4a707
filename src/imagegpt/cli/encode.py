"""`imagegpt encode`: turn images into ids of a palette, once, for training."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from imagegpt.cli import _broken_images, _checks, _console, _loading, _options, _progress
from imagegpt.cli.palette import SOURCE_HELP
from imagegpt.common import ranges
from imagegpt.common.shell import override, shell_command, unused_path

if TYPE_CHECKING:  # importing torch takes seconds, and `--help` does not need it
    from imagegpt.jobs.encode import EncodeResult


def encode(
    src: Annotated[str, _options.name_argument(SOURCE_HELP)],
    out: Annotated[Path, _options.path_argument("The folder to create, or to resume.")],
    palette: Annotated[
        str, _options.name_option("A .npy palette, a folder with one, or a model's name.", show_default=False)
    ],
    size: Annotated[int, _options.number_option(ranges.IMAGE_SIDE, "Image height and width in pixels.")] = 32,
    resize: Annotated[
        Literal["crop", "squash"], typer.Option(help="Crop the longer side, or distort the image.")
    ] = "crop",
    split: Annotated[
        str | None, typer.Option(help="Which split, if the images have splits.", show_default="all")
    ] = None,
    file_format: Annotated[
        Literal["arrow", "parquet"], typer.Option("--format", help="Format of the files; Arrow trains faster.")
    ] = "arrow",
    workers: Annotated[int | None, _options.number_option(ranges.WORKERS, "Processes.", show_default="cores")] = None,
    executor: _options.ExecutorOption = "local",
    max_broken: _options.MaxBrokenOption = 0.05,
    as_json: _options.JsonOption = False,
) -> None:
    """Turn images into ids of a palette, in a folder for training that the `datasets` library reads, too.

    The same command resumes; processes of torchrun, Slurm or a job array share the work. If broken images are left out
    (they are listed in encoding.json), the exit code is 1.
    """
    _checks.check_source(src)
    _checks.check_palette(palette)
    _checks.check_parent_folder(out)
    with _console.spinner("loading"):
        from imagegpt.data.palettes import load_palette
        from imagegpt.images.processor import ImageGPTImageProcessor
        from imagegpt.jobs import encode as job
        from imagegpt.jobs.ranks import Ranks

        _loading.quiet_libraries()
        processor = ImageGPTImageProcessor(load_palette(palette), size=size, resize_mode=resize)
    ranks = Ranks.from_environment(os.environ)
    with (
        _progress.on_interrupt(lambda: _how_to_resume(out) if ranks.reports else None),
        _progress.image_progress("encoding", shown=ranks.reports) as progress,
    ):
        result = job.encode(
            src, out, processor, split=split, num_workers=workers, executor=executor, max_broken=max_broken,
            file_format=file_format, ranks=ranks, on_progress=progress if ranks.reports else None,
        )  # fmt: skip
    if ranks.reports:
        _report(result, out, as_json)
    if result.broken:
        raise typer.Exit(_broken_images.EXIT_STATUS)


def _how_to_resume(out: Path) -> str:
    return f"stopped: the same command resumes from what is in {out}" if out.is_dir() else "stopped"


def _report(result: "EncodeResult", out: Path, as_json: bool) -> None:
    paths = (str(one.folder / "encoding.json") for one in result.splits if one.broken)
    _broken_images.report_broken(result.broken, " and ".join(paths))
    if as_json:
        _console.print_json(result.to_dict())
        return
    split = ["split"] if any(one.split is not None for one in result.splits) else []
    table = Table(*split, "images", "encoded", "broken", "classes", box=None, pad_edge=False)
    for one in result.splits:
        classes = "-" if one.classes is None else f"{len(one.classes):,}"
        numbers = [f"{one.num_source:,}", f"{one.num_images:,}", f"{len(one.broken):,}", classes]
        _console.add_row(table, *([str(one.split)] if split else []), *numbers)
    _console.print_table(table)
    num_new = sum(one.num_new for one in result.splits)
    if num_new:
        speed = f"{num_new:,} images in {result.seconds:.1f} s, {result.images_per_second:,.0f} images/s"
        _console.echo(f"{speed}: {out}")
    else:
        _console.echo(f"nothing was left to do: {out}")
    chosen = override("data.train", out)
    _console.suggest_command(shell_command("train", "pictures", "--set", chosen, "--out", unused_path("model")))
