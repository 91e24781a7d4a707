"""`imagegpt complete`: keep the upper part of images and draw the rest."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagegpt.cli import _checks, _console, _loading, _options, _output, _progress, _unreadable
from imagegpt.common import ranges

if TYPE_CHECKING:
    from PIL import Image

    from imagegpt.pipeline.options import RuleOptions


def complete(
    images: _options.ImagesArgument,
    model: _options.ModelOption = "digits",
    keep: Annotated[
        float | None,
        _options.number(ranges.KEEP, "Share of the pixels to keep, from the top.", show_default="0.5"),
    ] = None,
    rows: Annotated[int | None, _options.number(ranges.ROWS, "Rows of pixels to keep, from the top.")] = None,
    mask: Annotated[
        Path | None, _options.path_option("An image that is white where to keep pixels, these before all black ones.")
    ] = None,
    num: Annotated[int, _options.number(ranges.NUM_IMAGES, "Completions of each image.")] = 8,
    seed: _options.SeedOption = 0,
    temperature: _options.TemperatureOption = 1.0,
    top_k: _options.TopKOption = None,
    top_p: _options.TopPOption = None,
    min_p: _options.MinPOption = None,
    out: Annotated[Path, _options.path_option("Where the picture of all completions goes.")] = Path("completions.png"),
    singles: _options.SinglesOption = None,
    gif: _options.GifOption = None,
    force: _options.ForceOption = False,
    max_broken: _options.MaxBrokenOption = 0.05,
    device: _options.DeviceOption = None,
    precision: _options.PrecisionOption = None,
    decoder: _options.DecoderOption = "sequential",
    batch_size: _options.BatchSizeOption = None,
    max_memory: _options.MaxMemoryOption = None,
    revision: _options.RevisionOption = None,
) -> None:
    """Keep the upper part of images and let the model draw the rest, several times.

    An image is cropped to a square and reduced to the model's size and colours first. What to keep is said by one of
    --keep, --rows and --mask. Broken images are left out and listed in broken-images.txt beside the picture; the exit
    code is 1 then.
    """
    _check_choice({"--keep": keep, "--rows": rows, "--mask": mask})
    _output.check_png(out, force)
    _output.check_num(num * len(images), "completions")
    _output.check_gif(gif, force)
    places = _output.check_singles(singles, single_names(images, num), force)
    if out.absolute() in {place.absolute() for place in places}:
        raise ValueError(f"--out is {out}, which is also the name of a single completion: choose another name")
    _checks.check_images([*images, mask] if mask is not None else images)
    loading = _loading.Loading(
        model=model, revision=revision, device=device, precision=precision, decoder=decoder, max_memory=max_memory
    )
    pipe = loading.pipeline()
    import torch

    from imagegpt.figures.animations import appearing, check_gif_size
    from imagegpt.figures.grids import completion_grid, completion_grid_size
    from imagegpt.sampling import SamplingRules

    options: RuleOptions = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    rules = SamplingRules(**options)
    num_kept = pipe.num_kept_pixels(keep, rows=rows, mask=mask)
    encoded, broken = _unreadable.read_images(images, pipe.encode, max_broken)
    ids = torch.cat(list(encoded.values()))
    originals = pipe.processor.decode(ids)
    labels = [images[index].name for index in encoded]
    sheet_size = completion_grid_size(len(ids), num, originals[0].size, has_labels=True)
    if gif is not None:
        check_gif_size(sheet_size, originals[0].size, num_kept)
    with _progress.pixel_progress("completing") as progress:
        completions = pipe.complete_ids(
            ids[:, :num_kept], num=num, seed=seed, batch_size=batch_size, progress=progress, **options
        )

    def grid_of(num_shown: int) -> "Image.Image":
        return completion_grid(originals, num_kept, completions, labels, num_shown=num_shown)

    drawn = [image for several in completions for image in several]
    facts = {"model": model, "seed": seed, "rules": rules, "keep": f"{num_kept} pixels"}
    grid = completion_grid(originals, num_kept, completions, labels)
    animations = {} if gif is None else {gif: appearing(grid_of, drawn[0].size, num_kept)}
    singles_of_read = [places[index * num + copy] for index in encoded for copy in range(num)] if places else []
    _output.write_pngs({**dict(zip(singles_of_read, drawn, strict=False)), out: grid}, facts, animations)
    _console.echo(f"{num} completions of {len(ids)} {'image' if len(ids) == 1 else 'images'}: {out}")
    if gif is not None:
        _console.echo(f"as they appear: {gif}")
    if singles is not None:
        _console.echo(f"one by one: {singles}")
    if broken:
        _unreadable.list_broken(broken, out.parent)
        raise typer.Exit(_unreadable.STATUS)


def _check_choice(options: dict[str, Any]) -> None:
    given = [f"{name} {value}" for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} each say what is kept: give one of them")


def single_names(images: list[Path], num: int) -> list[str]:
    """What the PNGs of single completions are called."""
    names = [f"{path.stem}_{index}.png" for path in images for index in range(num)]
    if len(set(names)) < len(names):  # two images of the same name, from different folders
        names = [f"{row}_{path.stem}_{index}.png" for row, path in enumerate(images) for index in range(num)]
    return names
