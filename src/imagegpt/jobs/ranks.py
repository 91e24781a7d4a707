"""Which process of a launcher this is: torchrun, accelerate, Slurm's srun and job arrays, read from the environment.

Ranks are a hint. Any process makes any shard that no other process is making, so processes may start late, die or be
missing; the rank only decides where a process starts, which finished shards it checks, and which GPU it uses.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from imagegpt.common import ranges

_LAUNCHERS = (  # the variables of rank, world size, local rank, local world size
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_TASKS_PER_NODE"),
)
_ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """One of the processes of a job.

    Args:
        rank: of this process, 0 to world_size - 1.
        world_size: number of processes, >= 1.
        local_rank: among the processes of this machine, for choosing a GPU.
        local_world_size: number of processes on this machine.
        reports: whether this process prints progress and results: of the processes that share a terminal, the first.
    Raises: ValueError for numbers that contradict each other.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    reports: bool = True

    def __post_init__(self) -> None:
        for name, allowed in (
            ("rank", ranges.RANK), ("world_size", ranges.WORLD_SIZE), ("local_rank", ranges.RANK),
            ("local_world_size", ranges.WORLD_SIZE),
        ):  # fmt: skip
            object.__setattr__(self, name, allowed.check(name, getattr(self, name)))
        pairs = {"rank": (self.rank, self.world_size), "local_rank": (self.local_rank, self.local_world_size)}
        for name, (value, size) in pairs.items():
            if not 0 <= value < size:
                raise ValueError(f"{name} is {value} of {size} processes: it must be from 0 to one less than that")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the variables that a launcher has set; inside a job array, every task may use a launcher of its own.

        Returns: the only process, if no launcher has set any.
        Raises: ValueError if a variable is missing, is not a number or contradicts another.
        """
        for names in _LAUNCHERS:
            given = {name: environment[name] for name in names[:2] if name in environment}
            if len(given) == 1 and names[0].startswith("RANK"):
                raise ValueError(
                    f"{next(iter(given))} is set and its twin is not: set both RANK and WORLD_SIZE, or neither"
                )
            if len(given) == 2:
                return cls._launched(names, environment)._in_array(environment)
        return cls()._in_array(environment)

    @classmethod
    def _launched(cls, names: tuple[str, str, str, str], environment: Mapping[str, str]) -> Self:
        rank, size = (_number(name, environment[name]) for name in names[:2])
        local_rank = _number(names[2], environment[names[2]]) if names[2] in environment else rank
        local_size = _largest_number(names[3], environment[names[3]]) if names[3] in environment else size
        return cls(rank=rank, world_size=size, local_rank=local_rank, local_world_size=local_size, reports=rank == 0)

    def _in_array(self, environment: Mapping[str, str]) -> Self:
        """This process within a job array, whose tasks may have any numbers and have a terminal each."""
        if "SLURM_ARRAY_TASK_ID" not in environment:
            return self
        task, count, first, step = (_number(name, environment.get(name, "1")) for name in _ARRAY)
        if "SLURM_ARRAY_TASK_MIN" not in environment:
            first = 0
        index = (task - first) // max(1, step) % max(1, count)
        return replace(self, rank=index * self.world_size + self.rank, world_size=max(1, count) * self.world_size)

    def split(self, number: int, count: int) -> Self:
        """Process `number` of the `count` processes that do the work of this one."""
        return replace(self, rank=self.rank * count + number, world_size=self.world_size * count)

    def order(self, num_shards: int) -> list[int]:
        """All shards, in the order in which this process tries to make them: the processes start far apart."""
        start = self.rank * num_shards // self.world_size
        return [*range(start, num_shards), *range(start)]

    def checks(self, shard: int) -> bool:
        """Whether this process checks the files of a shard that was finished before."""
        return shard % self.world_size == self.rank


def _number(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise ValueError(f"the environment says {name}={value}: it must be an integer, as launchers set it")
    return int(value)


def _largest_number(name: str, value: str) -> int:
    """The largest count in Slurm's "4(x2),3", or a plain number."""
    if re.fullmatch(r"\d+(\(x\d+\))?(,\d+(\(x\d+\))?)*", value) is None:
        return _number(name, value)
    return max(int(count) for count in re.findall(r"(?:^|,)(\d+)", value))
