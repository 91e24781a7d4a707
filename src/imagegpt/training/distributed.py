"""One process or many: who am I, which device is mine, and what the others know.

Processes are started by `torchrun` or `accelerate launch`, which tell each one who it is by environment variables.
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

# Gloo's threads let go of tensors a moment after the last exchange, and need Python for that: a process that ends
# before they had their turn is aborted (torch 2.13, ProcessGroupGloo::runLoop), although all is done.
_LET_GO_S = 0.2


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Args:
        device: where this one computes.
        rank: of this one.
        size: how many there are.
        restarts: how often `torchrun` has started them again after one of them died.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    restarts: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and talks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, on each of them; `values` is changed."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        return (self.size > 1 and bool(self.sum(torch.tensor(float(here), device=self.device)) > 0)) or here

    def told(self, value: Any) -> Any:
        """What the main process says, in every process."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, value: Any) -> list[Any]:
        """What each process says, in every process, by rank."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        distributed.all_gather_object(box, value)
        return box

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            distributed.barrier()


def find_device(name: str) -> torch.device:
    """A device by its name.

    Raises: ValueError for one that is not there.
    """
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"there is no device {name!r}: give cpu, cuda or cuda:1") from error
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}: give cpu, cuda or cuda:1")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"there is no device {chosen}: this machine has {torch.cuda.device_count()} GPUs")
    return chosen


@contextmanager
def joined_world(device: str | None = None) -> Iterator[World]:
    """Join the processes that were started together, or be alone.

    Args:
        device: as torch names it; None is the GPU of this process's number if there is one, else the CPU.
    Raises: ValueError for a device that is not there.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = find_device(device or (f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World(chosen, restarts=restarts)
        return
    mine = not distributed.is_initialized()
    if mine:
        _join("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo", restarts)
    try:
        yield World(chosen, distributed.get_rank(), distributed.get_world_size(), restarts)
    finally:
        if mine:
            distributed.destroy_process_group()
            time.sleep(_LET_GO_S)


def _join(backend: str, restarts: int) -> None:
    if os.environ.get("GROUP_WORLD_SIZE") != "1":  # on several machines the numbers of restarts may differ
        distributed.init_process_group(backend)
        return
    # Torch 2.13 keeps one store for all restarts: without a name of its own a process might call on the dead.
    store, rank, size = next(rendezvous("env://"))
    store = PrefixStore(f"restart {restarts}", store)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
