"""`imagegpt models`: list the models known by name."""

from rich.table import Table

from imagegpt.checkpoints.registry import HUB_MODELS, bundled_models
from imagegpt.cli import _console, _options


def models(as_json: _options.JsonOption = False) -> None:
    """List the models known by name."""
    bundled = [(model.name, model.description, "in the package") for model in bundled_models()]
    on_hub = [(name, description, "on the hub") for name, description in HUB_MODELS.items()]
    if as_json:
        keys = ("name", "description", "location")
        _console.print_json({"models": [dict(zip(keys, row, strict=True)) for row in (*bundled, *on_hub)]})
        return
    table = Table("model", "description", "location", box=None, pad_edge=False)
    for row in (*bundled, *on_hub, ("any folder", "written by save_pretrained", "on your disk")):
        _console.add_row(table, *row)
    _console.print_table(table)
