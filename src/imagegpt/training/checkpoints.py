"""Checkpoints of a run: whole or not there, checked before they are believed, readable by any number of processes.

Each is a folder in the format of `torch.distributed.checkpoint`, to which every process writes its own shards, with
`progress.json`, what is not a tensor and the version of the format, and `manifest.json`, the size and SHA-256 of all
other files. It is written under a temporary name and renamed when it is complete.
"""

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from imagegpt.files import FORMAT_KEY, atomic_write, check_format
from imagegpt.training.world import World

CHECKPOINT_FORMAT = 1

_PROGRESS, _MANIFEST, _METADATA = "progress.json", "manifest.json", ".metadata"
_NAME = re.compile(r"step-[0-9]+")
_HASHED_AT_ONCE = 1 << 22


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: where they are; made when the first is saved.
        world: the processes that save together.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, world: World, keep: int) -> None:
        self.folder, self._world, self._keep = folder, world, keep

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        average: dict[str, Tensor],
        progress: dict[str, Any],
    ) -> Path:
        """Write what a run is after so many steps, then remove the oldest checkpoints, and any of more steps.

        There are some of more steps where they were damaged, so that the run had to go on from an older one.

        Args:
            step: steps done.
            model: its weights, whole or sharded.
            optimizers: their states.
            average: of the weights.
            progress: everything else, for JSON.
        Raises: OSError if it cannot be written; the checkpoints that are there stay.
        """
        final = self.folder / f"step-{step:08d}"
        making = self.folder / f".{final.name}.making"
        if self._world.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
        self._world.wait()
        try:
            with _quiet():
                save(_state(model, optimizers, average), checkpoint_id=making)
        except CheckpointException as error:  # no Exception to Python, and not to be mistaken for a mistake of ours
            reasons = sorted({" ".join(str(failure).split()) for failure, _ in error.failures.values()})
            raise OSError(
                f"the checkpoint cannot be written to {self.folder} ({'; '.join(reasons)}): make room, then the same "
                "command goes on from the last one"
            ) from error
        mine = [path for path in sorted(making.glob(f"__{self._world.rank}_*")) if path.is_file()]
        hashes = [pair for pairs in self._world.gathered([(p.name, _described(p)) for p in mine]) for pair in pairs]
        if self._world.is_main:
            content = {FORMAT_KEY: CHECKPOINT_FORMAT, **progress}
            atomic_write(making / _PROGRESS, json.dumps(content).encode(), "the progress")
            hashes += [(name, _described(making / name)) for name in (_METADATA, _PROGRESS)]
            atomic_write(making / _MANIFEST, json.dumps(dict(hashes), indent=1).encode(), "the manifest")
            shutil.rmtree(final, ignore_errors=True)
            making.rename(final)
            self._remove_others(step)
        self._world.wait()
        return final

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole, or None; a damaged one is passed over with a warning."""
        found = None
        if self._world.is_main:
            for path in reversed(self._all()):
                damage = damage_of(path)
                if damage is None:
                    found = path
                    break
                warnings.warn(f"the checkpoint {path} is damaged ({damage}) and passed over", stacklevel=2)
        return self._world.told(found)

    def load(
        self,
        path: Path,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        average: dict[str, Tensor],
    ) -> dict[str, Any]:
        """Put a checkpoint into a model, optimisers and an average, all changed in place.

        Returns: the progress.
        Raises: ValueError if it is of another model or version.
        """
        content = json.loads((path / _PROGRESS).read_text(encoding="utf-8"))
        check_format(content, CHECKPOINT_FORMAT, what=f"the checkpoint {path}", remedy="train it anew with --force")
        state = _state(model, optimizers, average)
        try:
            with _quiet():
                load(state, checkpoint_id=path)
        except (RuntimeError, CheckpointException) as error:
            raise ValueError(f"{path} is no checkpoint of this model: train it anew with --force") from error
        set_state_dict(model, optimizers, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        return {name: value for name, value in content.items() if name != FORMAT_KEY}

    def _all(self) -> list[Path]:
        """By their steps."""
        there = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted((path for path in there if _NAME.fullmatch(path.name)), key=step_of)

    def _remove_others(self, step: int) -> None:
        there = self._all()
        before = [path for path in there if step_of(path) <= step]
        for path in [*before[: -self._keep], *there[len(before) :], *self.folder.glob(".step-*.making")]:
            shutil.rmtree(path)


def step_of(path: Path) -> int:
    """Steps done when a checkpoint was saved."""
    return int(path.name.removeprefix("step-"))


def damage_of(path: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words, or None."""
    try:
        expected = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        missing = [name for name in (_METADATA, _PROGRESS) if name not in expected]
        wrong = [name for name, described in expected.items() if _described(path / name) != described]
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"{_MANIFEST} or what it lists cannot be read: {error}"
    if missing:
        return f"{_MANIFEST} does not list {missing[0]}"
    return f"{wrong[0]} is not what was written" if wrong else None


def _described(path: Path) -> list[Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_HASHED_AT_ONCE):
            digest.update(piece)
    return [path.stat().st_size, digest.hexdigest()]


def _state(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], average: dict[str, Tensor]) -> dict[str, Any]:
    weights, updates = get_state_dict(model, optimizers)
    return {"model": weights, "optimizer": updates, "average": average}


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch warns that there is one process only, and of its own inner workings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
