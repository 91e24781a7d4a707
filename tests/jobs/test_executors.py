"""Executors: what the processes make, the errors they pass on, and processes that die."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from imagegpt.jobs import engine
from imagegpt.jobs.executors import InProcess, ProcessPool, choose_executor
from imagegpt.jobs.markers import Markers, joined
from imagegpt.jobs.plan import Job, ShardPlan, choose_shard_size
from imagegpt.jobs.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Writing(Job):
    """Writes the numbers of a shard's items; `trouble` happens at shard 3."""

    doing: ClassVar[str] = "writes numbers into"
    folder: Path
    trouble: str = ""

    @property
    def plan(self):
        return ShardPlan(num_items=10, shard_size=2)

    def make(self, shard, report):
        if shard == 3 and self.trouble == "error":
            raise ValueError("shard 3 cannot be made: try another")
        once = self.folder.with_name("died")
        if shard == 3 and (self.trouble == "always dies" or (self.trouble == "dies once" and not once.exists())):
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (self.folder / f"{shard}.txt").write_text(str(list(self.plan.items(shard))))
        report(len(self.plan.items(shard)))
        return ""

    def check(self, shard, record):
        path = self.folder / f"{shard}.txt"
        return [] if path.exists() else [f"{path} is missing"]


@pytest.fixture
def run(tmp_path):
    """Do the job with an executor; returns its files and what was shown of the progress."""

    def call(executor, **options):
        seen, folder = [], tmp_path / "out"
        folder.mkdir(exist_ok=True)
        job = Writing(folder=folder, **options)
        with joined(folder, job.doing, lambda _: None):
            engine.run([job], executor, Ranks(), lambda done, total: seen.append((done, total)))
        assert Markers(folder, job.doing).finished() == set(range(5))
        return {path.name: path.read_text() for path in folder.glob("*.txt")}, seen

    return call


EXPECTED = {f"{shard}.txt": str([2 * shard, 2 * shard + 1]) for shard in range(5)}


@pytest.mark.parametrize("executor", [InProcess(), ProcessPool(2)], ids=["in process", "pool"])
def test_all_shards_are_made(run, executor):
    files, seen = run(executor)
    assert files == EXPECTED
    assert (seen[0], seen[-1]) == ((0, 10), (10, 10))
    assert seen == sorted(seen)


@pytest.mark.parametrize("executor", [InProcess(), ProcessPool(2)], ids=["in process", "pool"])
def test_an_error_of_a_worker_is_raised(run, executor):
    with pytest.raises(ValueError, match=r"^shard 3 cannot be made: try another$"):
        run(executor, trouble="error")
    assert run(executor)[0] == EXPECTED


def test_the_shard_of_a_dead_worker_is_made_by_another(run):
    assert run(ProcessPool(2), trouble="dies once")[0] == EXPECTED


def test_when_all_workers_have_died_one_sentence_says_so(run):
    with pytest.raises(ChildProcessError, match="all 2 worker processes died, perhaps for lack of memory: the same"):
        run(ProcessPool(2), trouble="always dies")
    assert run(InProcess())[0] == EXPECTED


def test_without_ray_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"^the executor 'ray' needs the library ray: pip install 'imagegpt\[ray\]'$"):
        choose_executor("ray", 2)


@pytest.mark.parametrize(("item_bytes", "largest", "expected"), [(1, 99, 99), (1 << 23, 99, 2), (1 << 30, 99, 1)])
def test_shards_are_sized_by_bytes(item_bytes, largest, expected):
    assert choose_shard_size(item_bytes, largest) == expected


def test_items_of_shards_are_counted_without_the_missing_ones_of_the_last():
    plan = ShardPlan(num_items=10, shard_size=4)
    assert [plan.count(shards) for shards in ([], {0}, {0, 2}, {0, 1, 2})] == [0, 4, 6, 10]
