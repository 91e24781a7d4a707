"""Several processes that make the shards of an encoding, those of all its parts.

A process takes seconds to start, because reading images imports torch; so they are started once, when the first shard
is asked for.
"""

import itertools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Self

from imagegpt.common.memory import check_disk, check_memory
from imagegpt.data.encoding_settings import EncodingSettings
from imagegpt.data.encoding_shards import Shard
from imagegpt.jobs.encode_worker import Part, make_shard, start_worker

_POLL_S = 0.2
_SHARD_BYTES, _FILE_BYTES = 3 + 2, 2  # of a pixel: in memory its colour and its id, in a file its id
_WORKER_BYTES = 150_000_000  # of a process with torch in it


def check_room(settings: Sequence[EncodingSettings], num_missing: int, num_workers: int, folder: Path) -> None:
    """See that the shards that are made at the same time fit into memory, and what is missing on the disk.

    Args:
        settings: of each part.
        num_missing: images that are still to be encoded, of all parts.
        num_workers: processes, 1 being the one that is there.
        folder: of the encoding.
    Raises: ValueError, in one sentence, if not.
    """
    num_pixels = settings[0].size[0] * settings[0].size[1]
    images = max(min(one.shard_size, one.num_source) for one in settings)
    each = images * num_pixels * _SHARD_BYTES + (_WORKER_BYTES if num_workers > 1 else 0)
    check_memory(
        f"encoding {images:,} images of {num_pixels:,} pixels at a time in {num_workers} processes",
        num_workers * each,
        "choose fewer processes (--workers), a smaller size, or a smaller shard_size",
    )
    what = f"encoding {num_missing:,} images of {num_pixels:,} pixels"
    check_disk(what, _FILE_BYTES * num_missing * num_pixels, folder, "make room there, or choose another place")


class ShardPool:
    """Processes at work on parts; a context, at whose end they are called off.

    Args:
        parts: what there is to encode.
        num_workers: processes.
    """

    def __init__(self, parts: Sequence[Part], num_workers: int) -> None:
        self._parts, self.num_workers = list(parts), num_workers
        context = multiprocessing.get_context("spawn")  # threads of torch and pyarrow do not survive a fork
        self._counter, self._stopped = context.Value("q", 0), context.Value("b", 0)
        # A process is started when a task is given and none is idle.
        given = (self._parts, self._counter, self._stopped)
        self._pool = ProcessPoolExecutor(num_workers, context, start_worker, given)

    def make(
        self, part: int, missing: Sequence[int], tell: Callable[[int], None], *, wait_for_others: bool
    ) -> Iterator[tuple[int, Shard | None]]:
        """Make shards of a part, and give each with its number when it is done.

        Args:
            part: its place in `parts`.
            missing: numbers of the shards.
            tell: called now and then with the number of pictures of this part that were read.
            wait_for_others: for shards that another command is making; otherwise None is given for those.
        Raises: what `ShardMaker` raises; ChildProcessError if a process has died.
        """
        running: dict[Future[Shard | None], int] = {}
        todo, before = iter(missing), self._counter.value
        try:
            while True:
                for number in itertools.islice(todo, 2 * self.num_workers - len(running)):
                    running[self._pool.submit(make_shard, part, number, wait_for_others)] = number
                if not running:
                    return
                done, _ = wait(running, _POLL_S, FIRST_COMPLETED)
                tell(self._counter.value - before)
                for future in done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                f"a worker process of the encoding into {self._parts[part].folder} has died, perhaps for want of "
                "memory: the same command goes on, with fewer workers"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.value = 1
        self._pool.shutdown(cancel_futures=True)
