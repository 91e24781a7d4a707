"""Which share of a run this process draws. No process group: the environment that launchers set says enough."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from imagegpt.common import ranges


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The processes of a run, and which of them this is.

    Args:
        rank: of this process, 0 to world_size - 1; process 0 writes the manifest and tells the progress.
        world_size: processes in all, >= 1.
        local_rank: among the processes of this machine, for choosing a GPU.
        local_world_size: processes of this machine.
        wait_s: seconds to wait for another process that shows no sign of life.
    Raises: ValueError for numbers that contradict each other.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    wait_s: float = 300.0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("rank", ranges.RANK), ("world_size", ranges.WORLD_SIZE), ("local_rank", ranges.RANK),
            ("local_world_size", ranges.WORLD_SIZE), ("wait_s", ranges.WAIT_S),
        ):  # fmt: skip
            object.__setattr__(self, name, allowed.check(name, getattr(self, name)))
        pairs = {"rank": (self.rank, self.world_size), "local_rank": (self.local_rank, self.local_world_size)}
        for name, (value, size) in pairs.items():
            if not 0 <= value < size:
                raise ValueError(f"{name} is {value} of {size} processes: it must be from 0 to one less than that")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """What torchrun and `accelerate launch` say by RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE.

        Returns: a single process if RANK and WORLD_SIZE are not set.
        Raises: ValueError if only one of them is set, or one is no number or does not fit the others.
        """
        given = {name: environment[name] for name in ("RANK", "WORLD_SIZE") if name in environment}
        if not given:
            return cls()
        if len(given) == 1:
            raise ValueError(
                f"{next(iter(given))} is set and its twin is not: set both RANK and WORLD_SIZE, or neither"
            )
        for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            given[name] = environment.get(name, given[name.removeprefix("LOCAL_")])
        for name, value in given.items():
            if not (value.isascii() and value.isdigit()):
                raise ValueError(f"the environment says {name}={value}: it must be a whole number, as torchrun sets it")
        return cls(**{name.lower(): int(value) for name, value in given.items()})

    def owns(self, block: int) -> bool:
        """Whether a block is this process's to draw."""
        return block % self.world_size == self.rank
