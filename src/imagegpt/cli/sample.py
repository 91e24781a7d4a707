"""`imagegpt sample`: draw images from nothing, as one picture, or many of them into a folder.

Which of the two is said by --out: a name that ends in .png is a picture, a folder or a name without a suffix is a run
of `imagegpt.bulk`, which goes on where it was killed and spreads over the processes of torchrun or accelerate.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from imagegpt import ranges
from imagegpt.cli import _bulk, _output, _progress, _shared

if TYPE_CHECKING:
    from imagegpt.pipeline import ImageGPTPipeline
    from imagegpt.pipeline_options import RuleOptions


def sample(
    num: Annotated[int, _shared.number(ranges.NUM_IMAGES, "How many images.")] = 16,
    model: _shared.ModelOption = "digits",
    seed: _shared.SeedOption = 0,
    temperature: _shared.TemperatureOption = 1.0,
    top_k: _shared.TopKOption = None,
    top_p: _shared.TopPOption = None,
    min_p: _shared.MinPOption = None,
    out: Annotated[
        Path, typer.Option(help="A .png for one picture of all samples, or a folder for many, a file each.")
    ] = Path("samples.png"),
    file_format: Annotated[
        Literal["png", "npz", "arrow"] | None,
        typer.Option("--format", help="Of the files in a folder: images, or shards of colour ids.", show_default="png"),
    ] = None,
    singles: Annotated[Path | None, typer.Option(help="A folder for each sample as a PNG of its own.")] = None,
    gif: Annotated[Path | None, typer.Option(help="Where an animation of the samples goes, as a GIF.")] = None,
    force: _shared.ForceOption = False,
    device: _shared.DeviceOption = None,
    precision: _shared.PrecisionOption = None,
    decoder: _shared.DecoderOption = "sequential",
    batch_size: _shared.BatchSizeOption = None,
    max_memory: _shared.MaxMemoryOption = None,
    revision: _shared.RevisionOption = None,
) -> None:
    """Draw images from nothing: one picture of all of them, or many into a folder.

    A run into a folder may be killed: the same command goes on. Under torchrun or accelerate it is shared out.
    """
    rules: RuleOptions = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    loading = _shared.Loading(
        model=model, revision=revision, device=device, precision=precision, decoder=decoder, max_memory=max_memory
    )
    if _is_folder(out):
        for name, value in {"--singles": singles, "--gif": gif}.items():
            if value is not None:
                raise ValueError(f"{name} {value} belongs to a picture and --out {out} is a folder: give only one")
        _bulk.sample_into_folder(out, num, loading, rules, seed, file_format or "png", batch_size, force)
        return
    _check_picture(out, file_format, force)
    _output.check_num(num, "samples")
    _output.check_gif(gif, force)
    places = _output.check_singles(singles, [f"sample_{index}.png" for index in range(num)], force)

    pipe = loading.pipeline()
    _draw_picture(pipe, num, model, seed, rules, batch_size, out, places, gif)
    if singles is not None:
        typer.echo(f"one by one: {singles}")


def _draw_picture(
    pipe: "ImageGPTPipeline",
    num: int,
    model: str,
    seed: int,
    rules: "RuleOptions",
    batch_size: int | None,
    out: Path,
    places: list[Path],
    gif: Path | None,
) -> None:
    from imagegpt.animations import appearing, check_gif_size
    from imagegpt.figures import sample_grid, sample_grid_size
    from imagegpt.sampling import SamplingRules

    facts = {"model": model, "seed": seed, "rules": SamplingRules(**rules)}
    size = pipe.processor.size["width"], pipe.processor.size["height"]
    sheet_size = sample_grid_size(num, size)
    if gif is not None:
        check_gif_size(sheet_size, size)
    with _progress.pixel_progress("sampling") as progress:
        images = pipe.sample(num, seed=seed, batch_size=batch_size, progress=progress, **rules)
    animations = {} if gif is None else {gif: appearing(lambda shown: sample_grid(images, num_shown=shown), size)}
    _output.write_pngs({**dict(zip(places, images, strict=False)), out: sample_grid(images)}, facts, animations)
    typer.echo(f"{num} {'sample' if num == 1 else 'samples'}: {out}")
    if gif is not None:
        typer.echo(f"as they appear: {gif}")


def _is_folder(out: Path) -> bool:
    """Whether --out means a folder; names with other suffixes than .png are mistakes, unless the folder is there."""
    return out.is_dir() or not out.suffix


def _check_picture(out: Path, file_format: str | None, force: bool) -> None:
    if out.suffix.lower() != ".png":
        raise ValueError(
            f"--out is {out}: images are written as PNG, choose a name that ends in .png, or one without a suffix for "
            "a folder of many"
        )
    if file_format is not None:
        raise ValueError(f"--format {file_format} is for many images in a folder: give --out a name without .png")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError(f"--out {out} is one picture, which several processes cannot share: give a folder")
    _output.check_png(out, force)
