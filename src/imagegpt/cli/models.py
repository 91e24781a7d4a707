"""`imagegpt models`: which models there are."""

from rich.table import Table

from imagegpt.checkpoints.registry import HUB_MODELS, bundled_models
from imagegpt.cli import _console


def models() -> None:
    """List the models known by name."""
    table = Table("model", "what it is", "where it is", box=None, pad_edge=False)
    for bundled in bundled_models():
        _console.add_row(table, bundled.name, bundled.description, "in the package")
    for name, description in HUB_MODELS.items():
        _console.add_row(table, name, description, "on the hub")
    _console.add_row(table, "any folder", "as save_pretrained writes it", "on your disk")
    _console.print_table(table)
