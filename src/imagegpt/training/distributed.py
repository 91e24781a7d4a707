"""Run on one process or many: this process's rank and device, and collective operations that also work alone.

`torchrun` or `accelerate launch` start the processes and tell each its rank in environment variables.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from imagegpt.common.devices import choose_device

# Gloo's threads release tensors a moment after the last collective, and need the interpreter for that: a process that
# ends before is aborted (torch 2.13, ProcessGroupGloo::runLoop), although all its work is done.
_GLOO_RELEASE_S = 0.2


@dataclass(frozen=True)
class DistributedContext:
    """The processes of a run, as seen from one of them.

    Args:
        device: of this process.
        rank: of this process.
        world_size: number of processes.
        restarts: how often `torchrun` has restarted them after one died.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    restarts: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place, and return it."""
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values

    def any(self, condition: bool) -> bool:
        """Return whether a condition holds in any process."""
        if self.world_size == 1:
            return condition
        return bool(self.all_reduce(torch.tensor(float(condition), device=self.device)) > 0)

    def broadcast(self, value: Any) -> Any:
        """Return the main process's value in every process."""
        if self.world_size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank, in every process."""
        if self.world_size == 1:
            return [value]
        box: list[Any] = [None] * self.world_size
        distributed.all_gather_object(box, value)
        return box

    def barrier(self) -> None:
        """Wait until all processes have reached this call."""
        if self.world_size > 1:
            distributed.barrier()


@contextmanager
def distributed_context(device: str | None = None) -> Iterator[DistributedContext]:
    """Join the processes that were launched together; without a launcher, run alone.

    Args:
        device: as torch names it; None is the GPU with this process's local rank if there is one, else the CPU.
    Raises: ValueError if this machine has no such device.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = choose_device(device or (f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield DistributedContext(chosen, restarts=restarts)
        return
    is_ours = not distributed.is_initialized()
    if is_ours:
        _init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo", restarts)
    try:
        yield DistributedContext(chosen, distributed.get_rank(), distributed.get_world_size(), restarts)
    finally:
        if is_ours:
            distributed.destroy_process_group()
            time.sleep(_GLOO_RELEASE_S)


def _init_process_group(backend: str, restarts: int) -> None:
    if os.environ.get("GROUP_WORLD_SIZE") != "1":  # several machines may count restarts differently
        distributed.init_process_group(backend)
        return
    # Torch 2.13 keeps one store for all restarts: without a prefix a process might connect to dead ones.
    store, rank, size = next(rendezvous("env://"))
    store = PrefixStore(f"restart {restarts}", store)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
