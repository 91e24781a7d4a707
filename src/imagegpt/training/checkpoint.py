"""Checkpoints of a run: whole or not there, checked before they are believed, readable by any number of processes.

Each is a folder that holds data only, nothing that could run:

    shard-00001-model-00001-of-00001.safetensors    the shards of the first process, by torch.distributed.checkpoint
    progress.json                                   what is not a tensor, and the version of the format
    manifest.json                                   size and SHA-256 of all other files

It is written under a temporary name and renamed when it is complete. Weights, the states of the optimisers and the
averaged weights are saved; what the recipe says (learning rate, weight decay, ...) is not.
"""

import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from imagegpt.files.atomic import atomic_write, sync
from imagegpt.files.checksums import sha256_of
from imagegpt.files.schemas import read_json, validate
from imagegpt.files.versions import FORMAT_KEY, check_format
from imagegpt.training.distributed import World

CHECKPOINT_FORMAT = 2  # 1 had a pickle, which a foreign folder could have used to run anything

_PROGRESS, _MANIFEST = "progress.json", "manifest.json"
_NAME = re.compile(r"step-[0-9]+")
_FILE_BYTES = 1 << 30  # about; torch puts a file together in memory before it writes it


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
                tensors = {
                    name: tensor.contiguous()
                    for name, tensor in sorted(_tensors(*get_state_dict(model, optimizers), average).items())
                }
                save(tensors, storage_writer=_writer(making, tensors))
        except CheckpointException as error:  # no Exception to Python, and not to be mistaken for a mistake of ours
            reasons = sorted({" ".join(str(failure).split()) for failure, _ in error.failures.values()})
            raise OSError(
                f"the checkpoint cannot be written to {self.folder} ({'; '.join(reasons)}): make room, then the same "
                "command goes on from the last one"
            ) from error
        mine = sorted(making.glob(f"shard-{self._world.rank + 1:05d}-*"))
        for path in mine:  # a power cut leaves the checkpoint whole, or the one before it
            sync(path)
        hashes = [pair for pairs in self._world.gathered([(p.name, _described(p)) for p in mine]) for pair in pairs]
        if self._world.is_main:
            content = {FORMAT_KEY: CHECKPOINT_FORMAT, **progress}
            atomic_write(making / _PROGRESS, json.dumps(content).encode(), "the progress")
            hashes.append((_PROGRESS, _described(making / _PROGRESS)))
            atomic_write(making / _MANIFEST, json.dumps(dict(hashes), indent=1).encode(), "the manifest")
            sync(making)
            shutil.rmtree(final, ignore_errors=True)
            making.rename(final)
            sync(final.parent)
            for path in self._all():
                if step_of(path) > step:
                    shutil.rmtree(path)
        self.remove_old(step)
        self._world.wait()
        return final

    def remove_old(self, step: int) -> None:
        """Remove the oldest of those up to a step, but for as many as are kept, and what was never whole."""
        if self._world.is_main:
            before = [path for path in self._all() if step_of(path) <= step]
            for path in [*before[: -self._keep], *self.folder.glob(".step-*.making")]:
                shutil.rmtree(path)

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
        remedy = "start over with --force"
        try:
            content = validate(read_json(path / _PROGRESS), dict[str, Any], str(path / _PROGRESS))
        except ValueError as error:
            raise ValueError(f"{error}: {remedy}") from error
        check_format(content, CHECKPOINT_FORMAT, what=f"the checkpoint {path}", remedy=remedy)
        try:
            with _quiet():
                weights, states = get_state_dict(model, optimizers)
                load(_tensors(weights, states, average), storage_reader=HuggingFaceStorageReader(str(path)))
        except MemoryError:
            raise
        except (Exception, CheckpointException) as error:  # torch's, safetensors' and those of what they run into
            raise ValueError(f"{path} is no checkpoint of this model: {remedy}") from error
        set_state_dict(model, optimizers, model_state_dict=weights, optim_state_dict=states)
        return {name: value for name, value in content.items() if name != FORMAT_KEY}

    def _all(self) -> list[Path]:
        """By their steps."""
        there = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted((path for path in there if _NAME.fullmatch(path.name)), key=step_of)


def step_of(path: Path) -> int:
    """Steps done when a checkpoint was saved."""
    return int(path.name.removeprefix("step-"))


def damage_of(path: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words, or None."""
    try:
        expected = validate(read_json(path / _MANIFEST), dict[str, list[int | str]], _MANIFEST)
        there = {file.name for file in path.iterdir()}
        missing = sorted({_PROGRESS, *expected} - there)
        unlisted = sorted(
            name for name in there - expected.keys() if name == _PROGRESS or name.endswith(".safetensors")
        )
        if missing:
            return f"{missing[0]} is missing"
        if unlisted:
            return f"{_MANIFEST} does not list {unlisted[0]}"
        wrong = [name for name, described in expected.items() if _described(path / name) != described]
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError) as error:
        return f"{_MANIFEST} or what it lists cannot be read: {error}"
    return f"{wrong[0]} is not what was written" if wrong else None


def _described(path: Path) -> list[Any]:
    return [path.stat().st_size, sha256_of(path)]


def _tensors(weights: Mapping[str, Any], states: Mapping[str, Any], average: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything to save, each under one name, as torch's `get_state_dict` gives it; nothing is copied."""
    moments = {f"{name}.{kind}": one for name, state in states["state"].items() for kind, one in state.items()}
    kinds = {"model": weights, "optimizer": moments, "average": average}
    return {f"{kind}.{name}": tensor for kind, several in kinds.items() for name, tensor in several.items()}


def _writer(folder: Path, tensors: Mapping[str, Tensor]) -> HuggingFaceStorageWriter:
    """Writes safetensors without a pickle beside them, each process its own shards."""
    ends = accumulate(tensor.nbytes for tensor in tensors.values())
    files = {name: 1 + end // _FILE_BYTES for name, end in zip(tensors, ends, strict=True)}
    return HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=files, save_distributed=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch warns that there is one process only, and of its own inner workings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
