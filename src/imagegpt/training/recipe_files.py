"""Where recipes are: the ones that ship with the package, by name, and files; without torch, which takes seconds."""

from importlib import resources
from pathlib import Path


def find_recipe(name: str) -> Path:
    """A recipe's file, from its path or the name of one that ships with the package.

    Raises: ValueError if there is none.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ValueError(f"there is no recipe {path}: check the path")
        return path
    known = known_recipes()
    if name not in known:
        raise ValueError(f"there is no recipe {name!r}: choose one of {', '.join(known)}, or give a .yaml file")
    return known[name]


def known_recipes() -> dict[str, Path]:
    """The recipes that ship with the package, by name."""
    folder = Path(str(resources.files("imagegpt") / "configs"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
