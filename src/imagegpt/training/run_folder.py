"""The folder of a run: whether a run can start or be resumed in it, and which files belong to it; see `run`."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from imagegpt.data.identity import RECORD_FILE, DataRecord
from imagegpt.files.atomic import target_name
from imagegpt.files.locks import LOCK_FILE
from imagegpt.training.factory import SAVING
from imagegpt.training.recipe import Recipe
from imagegpt.training.recipe_io import read_recipe

RECIPE_FILE = "recipe.yaml"

# The files that a run writes, as paths in its folder: --force and the start of a run remove nothing else.
_FILES = re.compile(
    r"(generation_|preprocessor_)?config\.json|model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?|README\.md"
    r"|log\.jsonl|broken-images\.txt|curve\.png|confusion\.png|samples/step-\d{8}\.png"
)
_FOLDERS = re.compile(rf"tracking|{re.escape(SAVING)}|checkpoints/(step-\d+|\.step-\d+\.making)")
_IDENTITY = (RECIPE_FILE, RECORD_FILE)  # by which the folder of a run is recognised; replaced, never removed

# Fields that may change when a run is resumed. Those of `data` and `training` decide how the same sums are computed:
# results change by rounding, and with dropout by which units are dropped, as with another number of processes. The
# others decide whether a run starts at all, when it ends, when it rolls back to which checkpoint, and what it shows.
_MAY_CHANGE = frozenset(
    {
        *(f"data.{name}" for name in ("max_broken", "num_workers")),
        *(f"training.{name}" for name in ("micro_batch_size", "compile", "gradient_checkpointing", "attention")),
        *(f"monitoring.{name}" for name in ("patience", "checkpoint_every", "keep_checkpoints", "spike_nats")),
        *(f"monitoring.{name}" for name in ("max_rollbacks", "samples", "trackers")),
        *(f"card.{name}" for name in ("title", "description", "data", "license")),
    }
)
_MAY_GROW = "training.num_steps"


def check_folder(out: Path, recipe: Recipe, *, force: bool = False) -> None:
    """Check that a run of this recipe can start or be resumed in a folder.

    Args:
        out: the folder.
        recipe: of the run.
        force: whether the files of an earlier run will be removed.
    Raises: ValueError or OSError, in one sentence, if not.
    """
    check_out_path(out)
    if not out.exists():
        return
    if not (out / RECIPE_FILE).is_file():
        # A process that was killed at the very beginning leaves only the record of the data.
        if any(not path.name.startswith(".") and path.name != RECORD_FILE for path in out.iterdir()):
            raise FileExistsError(f"{out} exists and holds no training run: choose another path")
        DataRecord.read(out)
        return
    if DataRecord.read(out) is None:  # people have files of this name, too
        raise FileExistsError(
            f"{out} holds a {RECIPE_FILE} without the {RECORD_FILE} of a training run: choose another path"
        )
    if force:
        return
    try:
        recorded = read_recipe(out / RECIPE_FILE)
    except ValueError as error:
        raise ValueError(
            f"{out} holds a run whose {RECIPE_FILE} is damaged ({error}): start over with --force"
        ) from error
    for name, old, new in incompatible_changes(recorded, recipe):
        raise ValueError(
            f"{out} holds a run with {name} = {old}, now it is {new}: choose another path, or start over with --force"
        )


def check_out_path(out: Path) -> None:
    """Check that a folder exists or can be created.

    Raises: OSError, in one sentence, if not.
    """
    if not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent}: create it first, or choose another path")
    if out.is_symlink() and not out.exists():
        raise FileNotFoundError(f"{out} is a link to {out.readlink()}, which does not exist: make that folder first")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file: choose another path")


def incompatible_changes(old: Recipe, new: Recipe) -> Iterator[tuple[str, object, object]]:
    """Yield the fields, with both values, whose difference prevents a run of `old` from being resumed as `new`.

    `training.num_steps` may grow; the fields in `_MAY_CHANGE` may have any value.
    """
    before, now = old.flatten(), new.flatten()
    for name, value in now.items():
        if before.get(name) != value and name not in _MAY_CHANGE:
            if name == _MAY_GROW and new.training.num_steps > old.training.num_steps:
                continue
            yield name, before.get(name), value


def check_data(out: Path, record: DataRecord) -> None:
    """Check that the run in a folder, if there is one, has the same data.

    Args:
        out: the folder.
        record: of the data.
    Raises: ValueError, naming the differences, if not.
    """
    if not (out / RECIPE_FILE).is_file():
        return
    recorded = DataRecord.read(out)
    assert recorded is not None, "check_folder requires it"
    if differences := recorded.differences(record):
        raise ValueError(
            f"{out} holds a run with other data: {', '.join(differences)} changed; give the same data, choose another "
            "path, or start over with --force"
        )


def remove_run(out: Path) -> list[str]:
    """Remove the files of a run, except its recipe and the record of its data, which the next run replaces.

    Returns: the other files in the folder, which remain.
    """
    others = []
    for path in _paths(out):
        name = path.relative_to(out).as_posix()
        if _FILES.fullmatch(name) and (path.is_file() or path.is_symlink()):
            path.unlink()
        elif _FOLDERS.fullmatch(name):
            _remove_folder(path)
        elif name not in (*_IDENTITY, LOCK_FILE):
            others.append(name)
    for folder in (out / "samples", out / "checkpoints"):
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()
    return sorted(others)


def remove_run_folder(out: Path) -> None:
    """Remove a run that was only a trial, and its folder unless it holds other files."""
    if not (out / RECIPE_FILE).is_file() or DataRecord.read(out) is None:
        return
    others = remove_run(out)
    for name in (RECIPE_FILE, RECORD_FILE, LOCK_FILE):
        (out / name).unlink(missing_ok=True)
    if not others:
        out.rmdir()


def remove_leftovers(out: Path) -> None:
    """Remove the incomplete files of a process that was killed; the caller must hold the folder's lock."""
    for path in _paths(out):
        name = path.relative_to(out).as_posix()
        written = path.with_name(target_name(path.name)).relative_to(out).as_posix()
        if name == SAVING:
            _remove_folder(path)
        elif written != name and (_FILES.fullmatch(written) or written in _IDENTITY):
            path.unlink()


def _paths(out: Path) -> list[Path]:
    """The contents of a folder, with those of `samples` and `checkpoints` in place of these folders."""
    inner = [out / name for name in ("samples", "checkpoints") if (out / name).is_dir()]
    return [path for folder in (out, *inner) for path in sorted(folder.iterdir()) if path not in inner]


def _remove_folder(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
