"""Checkpoints of a run: complete or absent, verified before they are loaded, readable by any number of processes.

Each is a folder of data files, none of which can contain code:

    shard-00001-model-00001-of-00001.safetensors    the first process's shards, by torch.distributed.checkpoint
    trainer_state.json                              everything that is not a tensor, and the format version
    manifest.json                                   size and SHA-256 of all other files

It is written under a temporary name and renamed once complete. It holds the weights, the states of the optimisers and
the averaged weights, but nothing that the recipe says (learning rate, weight decay, ...).
"""

import json
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
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

from imagegpt.files.atomic import atomic_write, fsync
from imagegpt.files.checksums import file_sha256
from imagegpt.files.schemas import read_json, validate
from imagegpt.files.versions import FORMAT_KEY, check_format_version
from imagegpt.training.distributed import DistributedContext

CHECKPOINT_FORMAT = 3  # 1 had a pickle, with which a stranger's folder could have run code

_STATE, _MANIFEST = "trainer_state.json", "manifest.json"
_NAME = re.compile(r"step-[0-9]+")
_FILE_BYTES = 1 << 30  # roughly; torch assembles a file in memory before writing it


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: that holds them; created with the first.
        context: the processes, which save together.
        keep: how many of the newest to keep.
    """

    def __init__(self, folder: Path, context: DistributedContext, keep: int) -> None:
        self.folder, self._context, self._keep = folder, context, keep

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        ema_weights: dict[str, Tensor],
        state: dict[str, Any],
    ) -> Path:
        """Write a checkpoint, then remove the oldest ones, and any of later steps.

        There are some of later steps if they were damaged, so that the run was resumed from an older one.

        Args:
            step: completed steps.
            model: its weights, possibly sharded.
            optimizers: their states.
            ema_weights: averaged weights; may be empty.
            state: everything else, as JSON values.
        Raises: OSError if it cannot be written; existing checkpoints remain.
        """
        final = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".{final.name}.making"
        if self._context.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
        self._context.barrier()
        self._write_tensors(temporary, model, optimizers, ema_weights)
        shards = sorted(temporary.glob(f"shard-{self._context.rank + 1:05d}-*"))
        for path in shards:  # so that a power failure leaves this checkpoint complete, or the one before
            fsync(path)
        checksums = self._context.all_gather([(path.name, _size_and_hash(path)) for path in shards])
        if self._context.is_main:
            _write_json_files(temporary, state, dict(pair for pairs in checksums for pair in pairs))
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            fsync(final.parent)
            for path in self._all():
                if step_of(path) > step:
                    shutil.rmtree(path)
        self.remove_old(step)
        self._context.barrier()
        return final

    def _write_tensors(
        self,
        folder: Path,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        ema_weights: dict[str, Tensor],
    ) -> None:
        try:
            with warnings.catch_warnings(action="ignore"):  # about a single process and torch's own internals
                named = _named_tensors(*get_state_dict(model, optimizers), ema_weights)
                tensors = {name: tensor.contiguous() for name, tensor in sorted(named.items())}
                save(tensors, storage_writer=_writer(folder, tensors))
        except CheckpointException as error:  # a BaseException; it must not look like a bug of ours
            reasons = sorted({" ".join(str(failure).split()) for failure, _ in error.failures.values()})
            raise OSError(
                f"the checkpoint cannot be written to {self.folder} ({'; '.join(reasons)}): make room, then the same "
                "command resumes from the last one"
            ) from error

    def remove_old(self, step: int) -> None:
        """Remove the oldest checkpoints up to a step, except the newest ones to keep, and incomplete ones."""
        if self._context.is_main:
            before = [path for path in self._all() if step_of(path) <= step]
            for path in [*before[: -self._keep], *self.folder.glob(".step-*.making")]:
                shutil.rmtree(path)

    def newest(self) -> Path | None:
        """Return the newest undamaged checkpoint, or None; damaged ones are skipped with a warning."""
        found = None
        if self._context.is_main:
            for path in reversed(self._all()):
                damage = damage_of(path)
                if damage is None:
                    found = path
                    break
                warnings.warn(f"the checkpoint {path} is damaged ({damage}) and skipped", stacklevel=2)
        return self._context.broadcast(found)

    def load(
        self,
        path: Path,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        ema_weights: dict[str, Tensor],
    ) -> dict[str, Any]:
        """Load a checkpoint into a model, optimisers and averaged weights, in place.

        Returns: the state that was saved with it.
        Raises: ValueError if it is of another model or format version.
        """
        remedy = "start over with --force"
        try:
            content = validate(read_json(path / _STATE), dict[str, Any], str(path / _STATE))
        except ValueError as error:
            raise ValueError(f"{error}: {remedy}") from error
        check_format_version(content, CHECKPOINT_FORMAT, what=f"the checkpoint {path}", remedy=remedy)
        try:
            with warnings.catch_warnings(action="ignore"):  # as in `_write_tensors`
                weights, states = get_state_dict(model, optimizers)
                load(_named_tensors(weights, states, ema_weights), storage_reader=HuggingFaceStorageReader(str(path)))
        except MemoryError:
            raise
        except (Exception, CheckpointException) as error:  # torch and safetensors raise many kinds
            raise ValueError(f"{path} is no checkpoint of this model: {remedy}") from error
        set_state_dict(model, optimizers, model_state_dict=weights, optim_state_dict=states)
        return {name: value for name, value in content.items() if name != FORMAT_KEY}

    def _all(self) -> list[Path]:
        """All checkpoints, by step."""
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted((path for path in paths if _NAME.fullmatch(path.name)), key=step_of)


def step_of(path: Path) -> int:
    """Return the number of steps after which a checkpoint was saved."""
    return int(path.name.removeprefix("step-"))


def damage_of(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, in a few words, or None."""
    try:
        expected = validate(read_json(path / _MANIFEST), dict[str, list[int | str]], _MANIFEST)
        found = {file.name for file in path.iterdir()}
        missing = sorted({_STATE, *expected} - found)
        unlisted = sorted(name for name in found - expected.keys() if name == _STATE or name.endswith(".safetensors"))
        if missing:
            return f"{missing[0]} is missing"
        if unlisted:
            return f"{_MANIFEST} does not list {unlisted[0]}"
        wrong = [name for name, checksum in expected.items() if _size_and_hash(path / name) != checksum]
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError) as error:
        return f"{_MANIFEST} or what it lists cannot be read: {error}"
    return f"{wrong[0]} was changed after it was written" if wrong else None


def _size_and_hash(path: Path) -> list[Any]:
    return [path.stat().st_size, file_sha256(path)]


def _write_json_files(folder: Path, state: dict[str, Any], checksums: dict[str, list[Any]]) -> None:
    content = json.dumps({FORMAT_KEY: CHECKPOINT_FORMAT, **state})
    atomic_write(folder / _STATE, content.encode(), "the trainer state")
    checksums[_STATE] = _size_and_hash(folder / _STATE)
    atomic_write(folder / _MANIFEST, json.dumps(checksums, indent=1).encode(), "the manifest")
    fsync(folder)


def _named_tensors(
    weights: Mapping[str, Any], states: Mapping[str, Any], ema_weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Collect all tensors to save, from torch's `get_state_dict`, under unique names; without copying."""
    moments = {f"{name}.{kind}": one for name, state in states["state"].items() for kind, one in state.items()}
    kinds = {"model": weights, "optimizer": moments, "ema": ema_weights}
    return {f"{kind}.{name}": tensor for kind, several in kinds.items() for name, tensor in several.items()}


def _writer(folder: Path, tensors: Mapping[str, Tensor]) -> HuggingFaceStorageWriter:
    """Return a writer of safetensors without a pickle, in which each process writes its own shards."""
    ends = accumulate(tensor.nbytes for tensor in tensors.values())
    files = {name: 1 + end // _FILE_BYTES for name, end in zip(tensors, ends, strict=True)}
    return HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=files, save_distributed=True)
