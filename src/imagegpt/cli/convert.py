"""`imagegpt convert`, `export` and `inspect`: checkpoints of other kinds, in, out, and looked at."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from imagegpt.checkpoints.registry import resolve
from imagegpt.cli import _checks, _console, _loading, _options, _output
from imagegpt.cli.encode import find_palette
from imagegpt.common import ranges, shell
from imagegpt.images.palette import PALETTE_FILE

convert_app = typer.Typer(help="Turn checkpoints of other kinds into folders that load.", no_args_is_help=True)
export_app = typer.Typer(help="Write a model as a checkpoint of another kind.", no_args_is_help=True)

_FILES = {
    "README.md", "classifier", "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json",
}  # fmt: skip

_WIDTH = 1000  # a line a tensor, on any terminal

PrefixArgument = Annotated[
    Path, _options.path_argument("The path of the files without .index, such as model.ckpt-1000000.")
]
NewFolderArgument = Annotated[Path, _options.path_argument("The folder to make.")]


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
        _options.name_option(
            "The colours: kmeans_centers.npy, or a folder or model with them.", show_default="beside PREFIX"
        ),
    ] = None,
    objective: Annotated[
        Literal["ar", "bert"] | None, typer.Option(help="What it was trained for.", show_default="as its variables say")
    ] = None,
    biases: Annotated[bool, typer.Option("--biases", help="Add biases of zeros, which transformers wants.")] = False,
    force: _options.ForceOption = False,
) -> None:
    """Turn a TensorFlow checkpoint of OpenAI's code into a folder that loads here and in transformers."""
    options = [
        word
        for name, value in (("palette", palette), ("objective", objective))
        if value
        for word in (f"--{name}", value)
    ]
    options += ["--biases"] if biases else []
    command = shell.command("convert", "openai", prefix.name, out.name, *options)
    _checks.check_prefix(prefix)
    _checks.check_utf8(out)
    colors = _palette_place(palette, prefix)
    with _output.new_folder(out, force=force, replaceable=_FILES) as folder, _console.working(f"reading {prefix}"):
        from imagegpt.checkpoints import conversion

        _loading.quiet_libraries()
        converted = conversion.convert_openai(
            prefix, folder, palette=find_palette(colors), objective=objective, biases=biases, command=command
        )
    if converted.ignored:
        _console.echo(
            f"left out {len(converted.ignored):,} variables that are no weights, such as {converted.ignored[0]}"
        )
    kind = "autoregressive" if converted.config.is_causal else "bidirectional (BERT)"
    step = "" if converted.step is None else f", step {converted.step:,}"
    _console.echo(f"{kind}, {converted.num_parameters:,} parameters{step}: {out}")
    if converted.num_classes:
        _console.echo(f"with a head for {converted.num_classes:,} classes: {out / 'classifier'}")
    _console.say_next(shell.command("info", out))


@convert_app.command("transformers", no_args_is_help=True)
def convert_transformers(
    folder: Annotated[Path, _options.path_argument("A folder of transformers 4 or 5.")],
    out: NewFolderArgument,
    force: _options.ForceOption = False,
) -> None:
    """Write an older folder (pickled or sharded weights, half precision) as one of today."""
    _checks.check_model(f"./{folder}" if not folder.is_absolute() else str(folder))
    _checks.check_utf8(out)
    with _output.new_folder(out, force=force, replaceable=_FILES) as made, _console.working(f"reading {folder}"):
        from imagegpt.checkpoints import conversion

        _loading.quiet_libraries()
        conversion.convert_folder(folder, made)
    _console.echo(f"converted: {out}")
    _console.say_next(shell.command("info", out))


@export_app.command("openai", no_args_is_help=True)
def export_openai(
    model: Annotated[str, _options.name_argument("A bundled model, a folder, or owner/model.")],
    prefix: Annotated[Path, _options.path_argument("What the files' names begin with.")],
    shards: Annotated[int, _options.number(ranges.SHARD_FILES, "Data files.")] = 1,
    force: _options.ForceOption = False,
) -> None:
    """Write a model as a TensorFlow checkpoint that OpenAI's code reads."""
    if prefix.name in ("", ".."):
        raise IsADirectoryError(f"{prefix} is a folder: add what the files' names shall begin with")
    if not prefix.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {prefix.parent}: make it first, or choose another place")
    index = prefix.with_name(f"{prefix.name}.index")
    if index.exists() and not force:
        raise FileExistsError(f"{index} exists already: give --force to overwrite it")
    _checks.check_model(model)
    with _console.working(f"writing {prefix}"):
        from imagegpt.checkpoints.conversion import export_openai
        from imagegpt.checkpoints.loading import find_folder

        _loading.quiet_libraries()
        names = export_openai(find_folder(model), prefix, num_shards=shards)
    _console.echo(f"{len(names):,} variables: {prefix}")
    _console.say_next(shell.command("inspect", prefix))


def inspect(
    source: Annotated[str, _options.name_argument("A checkpoint's prefix, a folder, or a model's name.")],
) -> None:
    """List the tensors of a checkpoint: names, shapes, types, bytes."""
    if not _checks.is_prefix(Path(source)):
        _checks.check_utf8(source)
        resolve(source)
    source = source if Path(source).name else str(Path(source).absolute())  # "." has no name
    with _console.working(f"reading {source}"):
        from imagegpt.checkpoints.listing import list_tensors

        tensors = list_tensors(source)
    table = Table("tensor", "shape", "type", box=None, pad_edge=False)
    table.add_column("bytes", justify="right")
    for one in tensors:
        _console.add_row(table, one.name, " x ".join(map(str, one.shape)) or "scalar", one.dtype, f"{one.nbytes:,}")
    _console.print_table(table, width=_WIDTH)
    _console.echo(f"{len(tensors):,} tensors, {sum(one.nbytes for one in tensors):,} bytes")


def _palette_place(said: str | None, prefix: Path) -> str:
    """Where the palette of a checkpoint is: where the user said, or beside its files.

    Raises: ValueError if there is nothing.
    """
    if said is not None:
        _checks.check_palette(said)
        return said
    beside = prefix.with_name(PALETTE_FILE)
    if not beside.is_file():
        raise ValueError(
            f"there is no {beside.name} beside {prefix}: give the colours with --palette (imagegpt download brings "
            "them)"
        )
    return str(beside)
