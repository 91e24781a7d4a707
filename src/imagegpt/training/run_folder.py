"""Whether a run can start, or be resumed, in a folder, and which files there are a run's; for the layout see `run`."""

import dataclasses
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagegpt.data.identity import RECORD_FILE, DataRecord
from imagegpt.files.atomic import final_name
from imagegpt.files.locks import LOCK_FILE
from imagegpt.training.factory import SAVING
from imagegpt.training.recipe import Recipe
from imagegpt.training.recipe_io import read_recipe

RECIPE_FILE = "recipe.yaml"

# What a run writes, by its path in the folder: --force and the start of a run remove nothing else.
_FILES = re.compile(
    r"(generation_|preprocessor_)?config\.json|model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?|README\.md"
    r"|log\.jsonl|broken-images\.txt|curve\.png|confusion\.png|samples/step-\d{8}\.png"
)
_FOLDERS = re.compile(rf"tracking|{re.escape(SAVING)}|checkpoints/(step-\d+|\.step-\d+\.making)")
_KNOWN_BY = (RECIPE_FILE, RECORD_FILE)  # what makes a folder that of a run; replaced, never removed

# Fields that do not define a run, so that it may be resumed with other values. The first say how the same sums are
# computed: results are the same but for rounding, and with dropout for which units are dropped, as with another number
# of processes. The others say whether it may start at all, when it ends, what leads back to which checkpoint, and what
# is shown.
_MAY_CHANGE = frozenset(
    {
        "data.max_broken", "data.num_workers",
        "training.micro_batch", "training.compile", "training.gradient_checkpointing", "training.attention",
        "watch.patience", "watch.checkpoint_every", "watch.keep_checkpoints", "watch.spike_nats", "watch.max_rollbacks",
        "watch.samples", "watch.trackers",
        "card.title", "card.description", "card.data", "card.license",
    }
)  # fmt: skip
_MAY_GROW = "training.num_steps"


def check_folder(out: Path, recipe: Recipe, *, force: bool = False) -> None:
    """See that a run of this recipe can start or be resumed in a folder.

    Args:
        out: the folder.
        recipe: of the run.
        force: whether the files of a run that is there will be removed.
    Raises: ValueError or OSError, in one sentence, if not.
    """
    check_place(out)
    if not out.exists():
        return
    if not (out / RECIPE_FILE).is_file():
        # A process that was killed at the very beginning leaves the record alone.
        if any(not path.name.startswith(".") and path.name != RECORD_FILE for path in out.iterdir()):
            raise FileExistsError(f"{out} exists and holds no training run: choose another place")
        DataRecord.read(out)
        return
    if DataRecord.read(out) is None:  # people call their own recipes so, too
        raise FileExistsError(
            f"{out} holds a {RECIPE_FILE} without the {RECORD_FILE} of a training run: choose another place"
        )
    if force:
        return
    try:
        there = read_recipe(out / RECIPE_FILE)
    except ValueError as error:
        raise ValueError(
            f"{out} holds a run whose {RECIPE_FILE} is damaged ({error}): start over with --force"
        ) from error
    for name, old, new in defining_changes(there, recipe):
        raise ValueError(
            f"{out} holds a run with {name} = {old}, now it is {new}: choose another place, or start over with --force"
        )


def check_place(out: Path) -> None:
    """See that there is, or can be, a folder of this name.

    Raises: OSError, in one sentence, if not.
    """
    if not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent}: make it, or choose another place")
    if out.is_symlink() and not out.exists():
        raise FileNotFoundError(f"{out} is a link to {out.readlink()}, which does not exist: make that folder first")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file: choose another place")


def defining_changes(old: Recipe, new: Recipe) -> Iterator[tuple[str, object, object]]:
    """The fields, with both values, in which recipes differ so that one cannot go on with what the other began.

    `training.num_steps` may grow; for what may change freely see `_MAY_CHANGE`.
    """
    before, now = _fields(dataclasses.asdict(old)), _fields(dataclasses.asdict(new))
    for name, value in now.items():
        if before[name] != value and name not in _MAY_CHANGE:
            if name == _MAY_GROW and new.training.num_steps > old.training.num_steps:
                continue
            yield name, before[name], value


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
    assert there is not None, "check_folder has seen it"
    if told := there.differences(record):
        raise ValueError(
            f"{out} holds a run with other data: {', '.join(told)} changed; give the same data, choose another place, "
            "or start over with --force"
        )


def remove_run(out: Path) -> list[str]:
    """Remove what a run wrote, but for its recipe and the record of its data, which its successor replaces.

    Returns: what else is in the folder and stays, as paths in it.
    """
    others = []
    for path in _paths(out):
        name = path.relative_to(out).as_posix()
        if _FILES.fullmatch(name) and (path.is_file() or path.is_symlink()):
            path.unlink()
        elif _FOLDERS.fullmatch(name):
            _remove_folder(path)
        elif name not in (*_KNOWN_BY, LOCK_FILE):
            others.append(name)
    for folder in (out / "samples", out / "checkpoints"):
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()
    return sorted(others)


def remove_run_folder(out: Path) -> None:
    """Remove a run that is part of something larger, and its folder unless there is something else in it."""
    if not (out / RECIPE_FILE).is_file() or DataRecord.read(out) is None:
        return
    others = remove_run(out)
    for name in (RECIPE_FILE, RECORD_FILE, LOCK_FILE):
        (out / name).unlink(missing_ok=True)
    if not others:
        out.rmdir()


def remove_leftovers(out: Path) -> None:
    """Remove what a process that was killed was just writing; nobody else may be at work there."""
    for path in _paths(out):
        name = path.relative_to(out).as_posix()
        written = path.with_name(final_name(path.name)).relative_to(out).as_posix()
        if name == SAVING:
            _remove_folder(path)
        elif written != name and (_FILES.fullmatch(written) or written in _KNOWN_BY):
            path.unlink()


def _paths(out: Path) -> list[Path]:
    """What is in a folder; of those of samples and checkpoints, what is in them."""
    inner = [out / name for name in ("samples", "checkpoints") if (out / name).is_dir()]
    return [path for folder in (out, *inner) for path in sorted(folder.iterdir()) if path not in inner]


def _remove_folder(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _fields(recipe: dict[str, Any], within: str = "") -> dict[str, object]:
    """Every field by the name it has on the command line, such as data.split.seed."""
    fields: dict[str, object] = {}
    for name, value in recipe.items():
        fields |= _fields(value, f"{within}{name}.") if isinstance(value, dict) else {within + name: value}
    return fields
