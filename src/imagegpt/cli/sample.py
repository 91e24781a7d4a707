"""`imagegpt sample`: draw images from nothing."""

from pathlib import Path
from typing import Annotated

import typer

from imagegpt.cli import _output, _shared


def sample(
    num: Annotated[int, typer.Option(help="How many images.", min=1)] = 16,
    model: _shared.ModelOption = "digits",
    seed: _shared.SeedOption = 0,
    temperature: _shared.TemperatureOption = 1.0,
    top_k: _shared.TopKOption = None,
    top_p: _shared.TopPOption = None,
    out: Annotated[Path, typer.Option(help="Where the picture of all samples goes.")] = Path("samples.png"),
    singles: Annotated[Path | None, typer.Option(help="A folder for each sample as a PNG of its own.")] = None,
    force: _shared.ForceOption = False,
    device: _shared.DeviceOption = None,
    dtype: _shared.DtypeOption = None,
    batch_size: _shared.BatchSizeOption = None,
    revision: _shared.RevisionOption = None,
) -> None:
    """Draw images from nothing."""
    _output.check_png(out, force)
    places = _output.check_singles(singles, [f"sample_{index}.png" for index in range(num)], force)

    pipe = _shared.load_pipeline(model, device, dtype, revision)
    from imagegpt.figures import sample_grid
    from imagegpt.sampling import SamplingRules

    rules = SamplingRules(temperature=temperature, top_k=top_k, top_p=top_p)
    with _shared.pixel_progress("sampling") as progress:
        images = pipe.sample(
            num,
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            batch_size=batch_size,
            progress=progress,
        )
    facts = {"model": model, "seed": seed, "rules": rules}
    _output.write_pngs({**dict(zip(places, images, strict=False)), out: sample_grid(images)}, facts)
    typer.echo(f"{num} {'sample' if num == 1 else 'samples'}: {out}")
    if singles is not None:
        typer.echo(f"one by one: {singles}")
