"""`imagegpt complete`: keep the upper part of images and draw the rest."""

from pathlib import Path
from typing import Annotated

import typer

from imagegpt.cli import _output, _shared


def complete(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Images of any kind and size.")],
    model: _shared.ModelOption = "digits",
    keep: Annotated[float, typer.Option(help="Share of the pixels to keep, from the top.", min=0, max=1)] = 0.5,
    num: Annotated[int, typer.Option(help="Completions of each image.", min=1)] = 8,
    seed: _shared.SeedOption = 0,
    temperature: _shared.TemperatureOption = 1.0,
    top_k: _shared.TopKOption = None,
    top_p: _shared.TopPOption = None,
    out: Annotated[Path, typer.Option(help="Where the picture of all completions goes.")] = Path("completions.png"),
    singles: Annotated[Path | None, typer.Option(help="A folder for each completion as a PNG of its own.")] = None,
    force: _shared.ForceOption = False,
    device: _shared.DeviceOption = None,
    dtype: _shared.DtypeOption = None,
    batch_size: _shared.BatchSizeOption = None,
    revision: _shared.RevisionOption = None,
) -> None:
    """Keep the upper part of images and let the model draw the rest, several times.

    An image is cropped to a square and reduced to the model's size and colours first.
    """
    _output.check_png(out, force)
    names = [f"{path.stem}_{index}.png" for path in images for index in range(num)]
    if len(set(names)) < len(names):  # two images of the same name, from different folders
        names = [f"{row}_{path.stem}_{index}.png" for row, path in enumerate(images) for index in range(num)]
    places = _output.check_singles(singles, names, force)
    for path in images:
        if not path.is_file():
            raise FileNotFoundError(f"there is no image {path}: check the path")

    pipe = _shared.load_pipeline(model, device, dtype, revision)
    from imagegpt.figures import completion_grid
    from imagegpt.sampling import SamplingRules

    rules = SamplingRules(temperature=temperature, top_k=top_k, top_p=top_p)
    num_kept = pipe.num_kept_pixels(keep)
    originals = pipe.reduce(images)
    with _shared.pixel_progress("completing") as progress:
        completions = pipe.complete(
            images,
            keep=keep,
            num=num,
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            batch_size=batch_size,
            progress=progress,
        )
    grid = completion_grid(originals, num_kept, completions, [path.name for path in images])
    drawn = [image for several in completions for image in several]
    facts = {"model": model, "seed": seed, "rules": rules, "keep": f"{num_kept} pixels"}
    _output.write_pngs({**dict(zip(places, drawn, strict=False)), out: grid}, facts)
    typer.echo(f"{num} completions of {len(images)} {'image' if len(images) == 1 else 'images'}: {out}")
    if singles is not None:
        typer.echo(f"one by one: {singles}")
