"""Whether a run can begin, or be resumed, in a folder; what is in it is described in `run`."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagegpt.data.identity import RECORD_FILE, DataRecord
from imagegpt.training.reading import read_recipe
from imagegpt.training.recipes import Recipe

RECIPE_FILE = "recipe.yaml"


def check_folder(out: Path, recipe: Recipe, *, force: bool = False) -> None:
    """See that a run of this recipe can begin or go on in a folder.

    Args:
        out: the folder.
        recipe: of the run.
        force: whether a run that is there will be removed.
    Raises: ValueError or OSError, in one sentence, if not.
    """
    if not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent}: make it, or choose another place")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file: choose another place")
    if not out.exists():
        return
    if not (out / RECIPE_FILE).is_file():
        # A process that was killed at the very beginning leaves the record alone.
        if any(not path.name.startswith(".") and path.name != RECORD_FILE for path in out.iterdir()):
            raise FileExistsError(f"{out} exists and holds no training run: choose another place")
        return
    if force:
        return
    try:
        there = read_recipe(out / RECIPE_FILE)
    except ValueError as error:
        raise ValueError(
            f"{out} holds a run whose {RECIPE_FILE} is damaged ({error}): begin anew with --force"
        ) from error
    if there != recipe:
        name, old, new = next(_differences(there, recipe))
        raise ValueError(
            f"{out} holds a run with {name} = {old}, now it is {new}: choose another place, or begin anew with --force"
        )


def check_data(out: Path, record: DataRecord) -> None:
    """See that the run in a folder, if there is one, has these data.

    Args:
        out: the folder.
        record: of the data that were opened.
    Raises: ValueError, naming what is different, if not.
    """
    if not (out / RECIPE_FILE).is_file():
        return
    there = DataRecord.read(out)
    if there is None:
        raise ValueError(
            f"{out} holds a run without {RECORD_FILE}, so that its data cannot be told from others: choose another "
            "place, or begin anew with --force"
        )
    if told := there.differences(record):
        raise ValueError(
            f"{out} holds a run with other data: {', '.join(told)} changed; give the same data, choose another place, "
            "or begin anew with --force"
        )


def remove_leftovers(out: Path) -> None:
    """Remove what a process that was killed was just writing; nobody else may be at work there."""
    for path in [*out.glob(".*.tmp"), *out.glob("samples/.*.tmp"), *out.glob(".saving.*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _differences(old: Recipe, new: Recipe) -> Iterator[tuple[str, object, object]]:
    before, now = _fields(dataclasses.asdict(old)), _fields(dataclasses.asdict(new))
    for name, value in now.items():
        if before[name] != value:
            yield name, before[name], value


def _fields(recipe: dict[str, Any], within: str = "") -> dict[str, object]:
    """Every field by the name it has on the command line, such as data.split.seed."""
    fields: dict[str, object] = {}
    for name, value in recipe.items():
        fields |= _fields(value, f"{within}{name}.") if isinstance(value, dict) else {within + name: value}
    return fields
