"""`imagegpt convert`, `export` and `inspect`: checkpoints of other kinds, in, out, and looked at."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from imagegpt import commands, ranges
from imagegpt.cli import _output, _shared

if TYPE_CHECKING:  # torch and what stands on it take seconds, and `--help` needs none of it
    from imagegpt.palette import ColorPalette

convert_app = typer.Typer(help="Turn checkpoints of other kinds into folders that load.", no_args_is_help=True)
export_app = typer.Typer(help="Write a model as a checkpoint of another kind.", no_args_is_help=True)

_FILES = {
    "README.md", "classifier", "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json",
}  # fmt: skip

PrefixArgument = Annotated[
    Path, typer.Argument(help="The path of the files without .index, such as model.ckpt-1000000.", show_default=False)
]
NewFolderArgument = Annotated[Path, typer.Argument(help="The folder to make.", show_default=False)]


@convert_app.callback()
def _conversions() -> None:
    """Turn checkpoints of other kinds into folders that load."""


@export_app.callback()
def _exports() -> None:
    """Write a model as a checkpoint of another kind."""


@convert_app.command("openai", no_args_is_help=True)
def convert_openai(
    prefix: PrefixArgument,
    out: NewFolderArgument,
    palette: Annotated[
        str | None,
        typer.Option(
            help="The colours: kmeans_centers.npy, or a folder or model with them.", show_default="beside PREFIX"
        ),
    ] = None,
    objective: Annotated[
        Literal["ar", "bert"] | None, typer.Option(help="What it was trained for.", show_default="as its variables say")
    ] = None,
    biases: Annotated[bool, typer.Option("--biases", help="Add biases of zeros, which transformers wants.")] = False,
    force: _shared.ForceOption = False,
) -> None:
    """Turn a TensorFlow checkpoint of OpenAI's code into a folder that loads here and in transformers."""
    options = [
        word
        for name, value in (("palette", palette), ("objective", objective))
        if value
        for word in (f"--{name}", value)
    ]
    options += ["--biases"] if biases else []
    command = shlex.join(["imagegpt", "convert", "openai", prefix.name, out.name, *options])
    with _output.new_folder(out, force=force, replaceable=_FILES) as folder, _shared.working(f"reading {prefix}"):
        from imagegpt.checkpoints import conversion

        _shared.quiet_libraries()
        converted = conversion.convert_openai(
            prefix, folder, palette=_palette(palette, prefix), objective=objective, biases=biases, command=command
        )
    if converted.ignored:
        typer.echo(f"left out {len(converted.ignored):,} variables that are no weights, such as {converted.ignored[0]}")
    kind = "autoregressive" if converted.config.is_causal else "bidirectional (BERT)"
    step = "" if converted.step is None else f", step {converted.step:,}"
    typer.echo(f"{kind}, {converted.num_parameters:,} parameters{step}: {out}")
    if converted.num_classes:
        typer.echo(f"with a head for {converted.num_classes:,} classes: {out / 'classifier'}")
    _shared.say_next(commands.command("info", out))


@convert_app.command("transformers", no_args_is_help=True)
def convert_transformers(
    folder: Annotated[Path, typer.Argument(help="A folder of transformers 4 or 5.", show_default=False)],
    out: NewFolderArgument,
    force: _shared.ForceOption = False,
) -> None:
    """Write an older folder (pickled or sharded weights, half precision) as one of today."""
    with _output.new_folder(out, force=force, replaceable=_FILES) as made, _shared.working(f"reading {folder}"):
        from imagegpt.checkpoints import conversion

        _shared.quiet_libraries()
        conversion.convert_folder(folder, made)
    typer.echo(f"converted: {out}")
    _shared.say_next(commands.command("info", out))


@export_app.command("openai", no_args_is_help=True)
def export_openai(
    model: Annotated[str, typer.Argument(help="A bundled model, a folder, or owner/model.", show_default=False)],
    prefix: Annotated[Path, typer.Argument(help="What the files' names begin with.", show_default=False)],
    shards: Annotated[int, _shared.number(ranges.SHARD_FILES, "Data files.")] = 1,
    force: _shared.ForceOption = False,
) -> None:
    """Write a model as a TensorFlow checkpoint that OpenAI's code reads."""
    if not prefix.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {prefix.parent}: make it first, or choose another place")
    there = sorted(prefix.parent.glob(f"{prefix.name}.index"))
    if there and not force:
        raise FileExistsError(f"{there[0]} exists already: give --force to overwrite it")
    with _shared.working(f"writing {prefix}"):
        from imagegpt.checkpoints.conversion import export_openai
        from imagegpt.checkpoints.loading import find_folder

        _shared.quiet_libraries()
        names = export_openai(find_folder(model), prefix, num_shards=shards)
    typer.echo(f"{len(names):,} variables: {prefix}")
    _shared.say_next(commands.command("inspect", prefix))


def inspect(
    source: Annotated[
        str, typer.Argument(help="A checkpoint's prefix, a folder, or a model's name.", show_default=False)
    ],
) -> None:
    """List the tensors of a checkpoint: names, shapes, types, bytes."""
    with _shared.working(f"reading {source}"):
        from imagegpt.checkpoints.listing import list_tensors

        tensors = list_tensors(source)
    table = Table("tensor", "shape", "type", box=None, pad_edge=False)
    table.add_column("bytes", justify="right")
    for one in tensors:
        table.add_row(one.name, " x ".join(map(str, one.shape)) or "scalar", one.dtype, f"{one.nbytes:,}")
    Console(highlight=False, markup=False, soft_wrap=True).print(table)
    typer.echo(f"{len(tensors):,} tensors, {sum(one.nbytes for one in tensors):,} bytes")


def _palette(said: str | None, prefix: Path) -> "ColorPalette":
    from imagegpt.cli.encode import find_palette
    from imagegpt.palette import PALETTE_FILE, ColorPalette

    if said is not None:
        return find_palette(said)
    beside = prefix.with_name(PALETTE_FILE)
    if not beside.is_file():
        raise ValueError(
            f"there is no {PALETTE_FILE} beside {prefix}: give the colours with --palette (imagegpt download brings "
            "them)"
        )
    return ColorPalette.load(beside)
