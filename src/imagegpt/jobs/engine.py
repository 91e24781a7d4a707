"""Doing a job: check the finished shards, then make the others, together with any number of other processes.

Every process does the same (`work`): it goes through the shards, makes those that are neither finished nor claimed by
another process, and finally waits for the claimed ones, of which it takes over those whose process dies. So nothing is
distributed, and executors only start processes.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from imagegpt.files.locks import BusyError
from imagegpt.jobs.markers import Markers, joined
from imagegpt.jobs.plan import Job
from imagegpt.jobs.ranks import Ranks

Progress = Callable[[float, int], None]

_POLL_S = 0.2
_RELIST_S, _RELIST_COST = 1.0, 20  # list the markers at most every so many seconds, and for at most 5 % of the time
_SHOWN = 3  # damaged files, in warnings


class Executor(Protocol):
    """Runs jobs to their end, in this process or in others."""

    def run(self, jobs: Sequence[Job], ranks: Ranks, monitor: "Monitor") -> None:
        """Do all jobs.

        Raises: what a job raises; ChildProcessError if processes died and work is left.
        """


def run(jobs: Sequence[Job], executor: Executor, ranks: Ranks, on_progress: Progress | None) -> list[int]:
    """Do jobs whose folders this process has joined; damaged files cause a warning and are made again.

    Args:
        jobs: to be done.
        executor: runs them.
        ranks: of this process.
        on_progress: called with the items done and their total, over all jobs.
    Returns: the number of items of each job that did not exist before.
    """
    for job in jobs:
        unmark_damaged(job, ranks)
    monitor = Monitor(jobs, on_progress)
    if not monitor.is_finished:
        executor.run(jobs, ranks, monitor)
    monitor.poll(force=True)
    return monitor.num_missing


def work(job: Job, ranks: Ranks, on_items: Callable[[int, float], None], on_made: Callable[[int, str], None]) -> None:
    """Make shards of a job until all are finished.

    Args:
        job: whose folder this process has joined.
        ranks: decides where to start.
        on_items: called with a shard and the number of its items done; with 0 while waiting for another process.
        on_made: called with a shard and its record when it is finished.
    Raises: what the job and the callbacks raise.
    """
    markers = Markers(job.folder, job.doing)
    for wait_s in (0.0, _POLL_S):  # first the shards that no other process is making
        finished = markers.finished()
        for shard in ranks.order(job.plan.num_shards):
            while shard not in finished and not markers.is_finished(shard):
                try:
                    with markers.claim(shard, wait_s):
                        if not markers.is_finished(shard):
                            record = job.make(shard, lambda done, shard=shard: on_items(shard, done))
                            markers.mark(shard, record)
                            on_made(shard, record)
                except BusyError:
                    if not wait_s:
                        break
                    on_items(shard, 0)


def work_on_all(jobs: Sequence[Job], ranks: Ranks) -> None:
    """What a worker process does: `work` on several jobs, silently."""
    for job in jobs:
        with joined(job.folder, job.doing, lambda _, job=job: job.check_settings()):
            work(job, ranks, lambda *_: None, lambda *_: None)


def unmark_damaged(job: Job, ranks: Ranks) -> None:
    """Check the files of finished shards; warn of missing and damaged ones, whose shards are then made again."""
    markers = Markers(job.folder, job.doing)
    shards = [shard for shard in sorted(markers.finished()) if shard < job.plan.num_shards and ranks.checks(shard)]
    with ThreadPoolExecutor() as threads:  # hashing releases Python's lock
        records = {shard: markers.record(shard) if job.has_records else "" for shard in shards}
        damage = list(threads.map(job.check, shards, records.values()))
    markers.unmark(shard for shard, clauses in zip(shards, damage, strict=True) if clauses)
    clauses = [f"{clause} and is made again" for several in damage for clause in several]
    if len(clauses) > _SHOWN:
        more = f"{len(clauses) - _SHOWN:,} more files in {job.folder} are missing or damaged and are made again"
        clauses = [*clauses[:_SHOWN], more]
    for clause in clauses:
        warnings.warn(clause, stacklevel=4)


class Monitor:
    """Follows the progress of jobs, all processes together.

    Args:
        jobs: whose folders this process has joined.
        on_progress: called with the items done and their total, over all jobs.

    Attributes:
        num_missing: items of each job that did not exist when this process began.
    """

    def __init__(self, jobs: Sequence[Job], on_progress: Progress | None) -> None:
        self._jobs, self._on_progress = list(jobs), on_progress
        self._records: list[dict[int, str]] = [{} for _ in jobs]  # of finished shards
        self._items: list[dict[int, float]] = [{} for _ in jobs]  # done, of shards that this process makes
        self._num_items = sum(job.plan.num_items for job in jobs)
        self._next_listing = self._shown = 0.0
        self._list_markers()
        self.num_missing = []
        for job, records in zip(self._jobs, self._records, strict=True):
            missing = set(range(job.plan.num_shards)) - records.keys()
            self.num_missing.append(job.plan.count(missing) - job.count_existing(missing))
        self._show(self._num_items - sum(self.num_missing))

    @property
    def is_finished(self) -> bool:
        """Whether no shard is left, as far as this process knows."""
        return all(len(found) == job.plan.num_shards for job, found in zip(self._jobs, self._records, strict=True))

    def poll(self, *, force: bool = False) -> None:
        """List the markers if that was long ago, and report.

        Raises: ValueError if a job is not worth continuing.
        """
        if force or time.monotonic() >= self._next_listing:
            self._list_markers()
            self._show(self._num_done)

    def work_here(self, ranks: Ranks) -> None:
        """Do the jobs in this process."""
        for job, records, items in zip(self._jobs, self._records, self._items, strict=True):

            def on_items(shard: int, done: float, items: dict[int, float] = items) -> None:
                items[shard] = done
                self.poll()
                self._show(self._num_done)

            def on_made(
                shard: int, record: str, job: Job = job, records: dict[int, str] = records, items: dict = items
            ) -> None:
                items.pop(shard, None)
                records[shard] = record
                job.review(records)
                self._show(self._num_done)

            work(job, ranks, on_items, on_made)

    def _list_markers(self) -> None:
        start = time.monotonic()
        for job, records, items in zip(self._jobs, self._records, self._items, strict=True):
            markers = Markers(job.folder, job.doing)
            for shard in markers.finished() - records.keys():
                if shard < job.plan.num_shards:
                    items.pop(shard, None)
                    records[shard] = markers.record(shard) if job.has_records else ""
            job.review(records)
        self._next_listing = time.monotonic() + max(_RELIST_S, _RELIST_COST * (time.monotonic() - start))

    @property
    def _num_done(self) -> float:
        finished = sum(job.plan.count(found) for job, found in zip(self._jobs, self._records, strict=True))
        return finished + sum(done for items in self._items for done in items.values())

    def _show(self, done: float) -> None:
        if self._on_progress is not None:
            self._shown = max(self._shown, min(done, self._num_items))
            self._on_progress(self._shown, self._num_items)
