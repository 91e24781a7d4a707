"""What a job is: numbered items, cut into shards of consecutive items, and how to make and check one shard.

To add a job, subclass `Job`; `engine.run` does the rest.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

SHARD_BYTES = 1 << 24  # of a shard's content: one file is read and written at once

Report = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """Items 0 to `num_items` - 1, cut into shards.

    Attributes:
        num_items: in total.
        shard_size: items per shard; the last shard may be smaller. Independent of the batch size.
    """

    num_items: int
    shard_size: int

    @property
    def num_shards(self) -> int:
        """The number of shards."""
        return -(-self.num_items // self.shard_size)

    def items(self, shard: int) -> range:
        """The items of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_items))

    def count(self, shards: Collection[int]) -> int:
        """The number of items in some shards."""
        last = self.num_shards - 1
        return len(shards) * self.shard_size - (self.shard_size - len(self.items(last)) if last in shards else 0)


def choose_shard_size(item_bytes: int, largest: int) -> int:
    """The number of items whose content fills a shard of `SHARD_BYTES`, from 1 to `largest`."""
    return max(1, min(largest, SHARD_BYTES // max(1, item_bytes)))


class Job(ABC):
    """Work on many items that goes into one folder.

    Every process gets a copy by pickle, so a job holds only what describes the work; a model, for example, is loaded
    by each process when it makes its first shard. The files of a shard depend on the job's settings and the shard's
    number alone.

    Attributes:
        folder: receives all files of the job.
        doing: the activity, for error messages: "encodes images into".
        has_records: whether `make` returns records; otherwise the markers of finished shards are empty files.
    """

    folder: Path
    doing: ClassVar[str]
    has_records: ClassVar[bool] = False

    @property
    @abstractmethod
    def plan(self) -> ShardPlan:
        """The job's items and shards."""

    @property
    def needs_gpu(self) -> bool:
        """Whether a process that makes shards needs a GPU of its own."""
        return False

    @abstractmethod
    def make(self, shard: int, report: Report) -> str:
        """Write the files of a shard that do not exist yet or are damaged.

        Args:
            shard: its number; no other process makes it at the same time.
            report: to be called with the number of the shard's items done so far.
        Returns: the record of the shard, which its marker keeps; "" if jobs of this kind have none.
        """

    @abstractmethod
    def check(self, shard: int, record: str) -> list[str]:
        """Read the files of a finished shard.

        Returns: for each missing or damaged file a clause, such as "out/x.png is missing".
        """

    def check_settings(self) -> None:  # noqa: B027 - most folders belong to one job forever
        """Check that the folder still belongs to this job.

        Raises: ValueError if another job has replaced it.
        """

    def review(self, records: Mapping[int, str]) -> None:  # noqa: B027 - most jobs accept any record
        """Check the records of all finished shards, after each shard.

        Raises: ValueError to stop the job.
        """

    def count_existing(self, shards: Collection[int]) -> int:
        """The number of items in unfinished shards whose files exist already; 0 if a shard is a single file."""
        return 0
