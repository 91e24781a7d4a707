"""`imagegpt sample`: draw images from nothing, as one picture, or many of them into a folder.

Which of the two is said by --out: a name that ends in .png is a picture, a folder or a name without a suffix is a run
of `imagegpt.jobs`, which goes on where it was killed and spreads over the processes of torchrun or accelerate.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from imagegpt.cli import _console, _loading, _options, _output, _progress, _sample_folder
from imagegpt.common import ranges

if TYPE_CHECKING:
    from imagegpt.pipeline.options import RuleOptions
    from imagegpt.pipeline.pipeline import ImageGPTPipeline


def sample(
    num: Annotated[int, _options.number(ranges.NUM_IMAGES, "How many images.")] = 16,
    model: _options.ModelOption = "digits",
    seed: _options.SeedOption = 0,
    temperature: _options.TemperatureOption = 1.0,
    top_k: _options.TopKOption = None,
    top_p: _options.TopPOption = None,
    min_p: _options.MinPOption = None,
    out: Annotated[
        Path, _options.path_option("A .png for one picture of all samples, or a folder for many, a file each.")
    ] = Path("samples.png"),
    file_format: Annotated[
        Literal["png", "npz", "arrow"] | None,
        typer.Option("--format", help="Of the files in a folder: images, or shards of colour ids.", show_default="png"),
    ] = None,
    singles: _options.SinglesOption = None,
    gif: _options.GifOption = None,
    force: _options.ForceOption = False,
    device: _options.DeviceOption = None,
    precision: _options.PrecisionOption = None,
    decoder: _options.DecoderOption = "sequential",
    batch_size: _options.BatchSizeOption = None,
    max_memory: _options.MaxMemoryOption = None,
    revision: _options.RevisionOption = None,
) -> None:
    """Draw images from nothing: one picture of all of them, or many into a folder.

    A run into a folder may be killed: the same command goes on. Under torchrun or accelerate it is shared out.
    """
    rules: RuleOptions = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    loading = _loading.Loading(
        model=model, revision=revision, device=device, precision=precision, decoder=decoder, max_memory=max_memory
    )
    if _is_folder(out):
        for name, value in {"--singles": singles, "--gif": gif}.items():
            if value is not None:
                raise ValueError(f"{name} {value} belongs to a picture and --out {out} is a folder: give only one")
        _sample_folder.sample_into_folder(out, num, loading, rules, seed, file_format or "png", batch_size, force)
        return
    _check_picture(out, file_format, force)
    _output.check_num(num, "samples")
    _output.check_gif(gif, force)
    places = _output.check_singles(singles, [f"sample_{index}.png" for index in range(num)], force)

    pipe = loading.pipeline()
    _draw_picture(pipe, num, model, seed, rules, batch_size, out, places, gif)
    if singles is not None:
        _console.echo(f"one by one: {singles}")


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
    from imagegpt.figures.animations import appearing, check_gif_size
    from imagegpt.figures.grids import sample_grid, sample_grid_size
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
    _console.echo(f"{num} {'sample' if num == 1 else 'samples'}: {out}")
    if gif is not None:
        _console.echo(f"as they appear: {gif}")


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
