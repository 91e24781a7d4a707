"""`imagegpt export`: export a model to a checkpoint of another format."""

from pathlib import Path
from typing import Annotated

import typer

from imagegpt.cli import _checks, _console, _loading, _options
from imagegpt.common import ranges, shell

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _formats() -> None:
    """Export a model to a checkpoint of another format."""


@app.command("openai", no_args_is_help=True)
def export_openai(
    model: Annotated[str, _options.name_argument("A bundled model, a folder, or owner/model.")],
    prefix: Annotated[Path, _options.path_argument("The path of the files without .index, such as folder/model.ckpt.")],
    shards: Annotated[int, _options.number_option(ranges.SHARD_FILES, "Number of data files.")] = 1,
    force: _options.ForceOption = False,
    as_json: _options.JsonOption = False,
) -> None:
    """Export a model to a TensorFlow checkpoint that OpenAI's code can load."""
    if prefix.name in ("", ".."):
        raise IsADirectoryError(f"{prefix} is a folder: add a prefix for the files' names")
    _checks.check_parent_folder(prefix)
    index = prefix.with_name(f"{prefix.name}.index")
    if index.exists() and not force:
        raise FileExistsError(f"{index} exists already: give --force to overwrite it")
    _checks.check_model(model)
    with _console.spinner(f"writing {prefix}"):
        from imagegpt.checkpoints.conversion import export_openai
        from imagegpt.checkpoints.loading import find_folder

        _loading.quiet_libraries()
        names = export_openai(find_folder(model), prefix, num_shards=shards)
    if as_json:
        _console.print_json({"num_variables": len(names), "path": str(prefix)})
    else:
        _console.echo(f"{len(names):,} variables: {prefix}")
    _console.suggest_command(shell.shell_command("inspect", prefix))
