"""Find recipes: the bundled ones by name, others by path. Does not import torch, which takes seconds."""

from importlib import resources
from pathlib import Path


def find_recipe(name: str) -> Path:
    """Return the file of a recipe, given its path or the name of a bundled one.

    Raises: ValueError if there is none.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ValueError(f"there is no recipe {path}: check the path")
        return path
    bundled = bundled_recipes()
    if name not in bundled:
        raise ValueError(f"there is no recipe {name!r}: choose one of {', '.join(bundled)}, or give a .yaml file")
    return bundled[name]


def bundled_recipes() -> dict[str, Path]:
    """Return the files of the recipes that ship with the package, by name."""
    folder = Path(str(resources.files("imagegpt") / "configs"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
