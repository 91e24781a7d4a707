"""`imagegpt convert`: convert checkpoints of other formats to folders that load here and in transformers."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from imagegpt.cli import _checks, _console, _loading, _options, _output
from imagegpt.common import shell
from imagegpt.images.palette import PALETTE_FILE

app = typer.Typer(help="Convert checkpoints of other formats.", no_args_is_help=True)

_FILES = {
    "README.md", "classifier", "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json",
}  # fmt: skip

PrefixArgument = Annotated[
    Path, _options.path_argument("The path of the files without .index, such as model.ckpt-1000000.")
]
NewFolderArgument = Annotated[Path, _options.path_argument("The folder to create.")]


@app.command("openai", no_args_is_help=True)
def convert_openai(
    prefix: PrefixArgument,
    out: NewFolderArgument,
    palette: Annotated[
        str | None,
        _options.name_option(
            "The palette: kmeans_centers.npy, or a folder or model with one.", show_default="next to PREFIX"
        ),
    ] = None,
    objective: Annotated[
        Literal["ar", "bert"] | None, typer.Option(help="The expected objective.", show_default="either")
    ] = None,
    biases: Annotated[bool, typer.Option("--biases", help="Add biases of zeros, as transformers expects.")] = False,
    force: _options.ForceOption = False,
    as_json: _options.JsonOption = False,
) -> None:
    """Convert a TensorFlow checkpoint of OpenAI's code to a folder that loads here and in transformers."""
    given = {"--palette": palette, "--objective": objective}
    options = [str(word) for pair in given.items() if pair[1] for word in pair] + ["--biases"] * biases
    command = shell.shell_command("convert", "openai", prefix.name, out.name, *options)
    _checks.check_prefix(prefix)
    _checks.check_utf8(out)
    palette_source = _find_palette_source(palette, prefix)
    with _output.new_folder(out, force=force, replaceable=_FILES) as folder, _console.spinner(f"reading {prefix}"):
        from imagegpt.checkpoints import conversion
        from imagegpt.data.palettes import load_palette

        _loading.quiet_libraries()
        result = conversion.convert_openai(
            prefix, folder, palette=load_palette(palette_source), objective=objective, biases=biases, command=command
        )
    if as_json:
        _console.print_json({**result.to_dict(), "path": str(out)})
    else:
        if result.ignored:
            _console.echo(
                f"skipped {len(result.ignored):,} variables that are not weights, such as {result.ignored[0]}"
            )
        kind = "autoregressive" if result.config.is_causal else "bidirectional (BERT)"
        step = "" if result.step is None else f", step {result.step:,}"
        _console.echo(f"{kind}, {result.num_parameters:,} parameters{step}: {out}")
        if result.num_classes:
            _console.echo(f"with a classifier for {result.num_classes:,} classes: {out / 'classifier'}")
    _console.suggest_command(shell.shell_command("info", out))


@app.command("transformers", no_args_is_help=True)
def convert_transformers(
    folder: Annotated[Path, _options.path_argument("A folder of transformers 4 or 5.")],
    out: NewFolderArgument,
    force: _options.ForceOption = False,
) -> None:
    """Convert an older folder (pickled or sharded weights, half precision) to the current format."""
    _checks.check_model(f"./{folder}" if not folder.is_absolute() else str(folder))
    _checks.check_utf8(out)
    with _output.new_folder(out, force=force, replaceable=_FILES) as converted, _console.spinner(f"reading {folder}"):
        from imagegpt.checkpoints import conversion

        _loading.quiet_libraries()
        conversion.convert_transformers(folder, converted)
    _console.echo(f"converted: {out}")
    _console.suggest_command(shell.shell_command("info", out))


def _find_palette_source(palette: str | None, prefix: Path) -> str:
    """Return the palette given by the user, or the one next to the checkpoint's files.

    Raises: ValueError if there is none.
    """
    if palette is not None:
        _checks.check_palette(palette)
        return palette
    path = prefix.with_name(PALETTE_FILE)
    if not path.is_file():
        raise ValueError(
            f"there is no {path.name} next to {prefix}: give the palette with --palette (imagegpt download gets it too)"
        )
    return str(path)
