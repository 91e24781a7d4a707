"""`imagegpt inspect`: list the tensors of a checkpoint."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from rich.table import Table

from imagegpt.checkpoints.registry import find_local_folder
from imagegpt.cli import _checks, _console, _options

_WIDTH = 1000  # characters: one line per tensor on any terminal


def inspect(
    source: Annotated[str, _options.name_argument("A checkpoint's prefix, a folder, or a model's name.")],
    as_json: _options.JsonOption = False,
) -> None:
    """List the tensors of a checkpoint: names, shapes, types, bytes."""
    if not _checks.is_checkpoint_prefix(Path(source)):
        _checks.check_utf8(source)
        find_local_folder(source)
    source = source if Path(source).name else str(Path(source).absolute())  # "." has no name
    with _console.spinner(f"reading {source}"):
        from imagegpt.checkpoints.listing import list_tensors

        tensors = list_tensors(source)
    num_bytes = sum(tensor.nbytes for tensor in tensors)
    if as_json:
        _console.print_json({"tensors": [asdict(tensor) for tensor in tensors], "bytes": num_bytes})
        return
    table = Table("tensor", "shape", "type", box=None, pad_edge=False)
    table.add_column("bytes", justify="right")
    for tensor in tensors:
        shape = " x ".join(map(str, tensor.shape)) or "scalar"
        _console.add_row(table, tensor.name, shape, tensor.dtype, f"{tensor.nbytes:,}")
    _console.print_table(table, width=_WIDTH)
    _console.echo(f"{len(tensors):,} tensors, {num_bytes:,} bytes")
