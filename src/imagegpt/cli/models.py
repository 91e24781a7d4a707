"""`imagegpt models`: which models there are."""

from rich.console import Console
from rich.table import Table

from imagegpt.checkpoints.registry import HUB_MODELS, bundled_models


def models() -> None:
    """List the models known by name."""
    table = Table("model", "what it is", "where it is", box=None, pad_edge=False)
    for bundled in bundled_models():
        table.add_row(bundled.name, bundled.description, "in the package")
    for name, description in HUB_MODELS.items():
        table.add_row(name, description, "on the hub")
    table.add_row("any folder", "as save_pretrained writes it", "on your disk")
    Console(highlight=False, markup=False).print(table)
