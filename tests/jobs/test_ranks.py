"""Ranks from the environment of launchers, and what they decide."""

import pytest

from imagegpt.jobs.ranks import Ranks


def slurm(rank, size, **more):
    return {"SLURM_PROCID": str(rank), "SLURM_NTASKS": str(size), **more}


def array(task, count, **more):
    return {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(count), **more}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Ranks()),
        ({"LOCAL_RANK": "3"}, Ranks()),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Ranks()),
        ({"RANK": "1", "WORLD_SIZE": "2"},
         Ranks(rank=1, world_size=2, local_rank=1, local_world_size=2, reports=False)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
         Ranks(rank=5, world_size=8, local_rank=1, local_world_size=4, reports=False)),
        (slurm(5, 7, SLURM_LOCALID="1", SLURM_TASKS_PER_NODE="4,3"),
         Ranks(rank=5, world_size=7, local_rank=1, local_world_size=4, reports=False)),
        (slurm(0, 8, SLURM_LOCALID="0", SLURM_TASKS_PER_NODE="4(x2)"), Ranks(world_size=8, local_world_size=4)),
        ({"SLURM_NTASKS": "8"}, Ranks()),  # a shell of salloc, without srun
        (array(2, 4), Ranks(rank=2, world_size=4)),
        (array(7, 3, SLURM_ARRAY_TASK_MIN="3", SLURM_ARRAY_TASK_STEP="2"), Ranks(rank=2, world_size=3)),
        (array(9, 2, SLURM_ARRAY_TASK_MIN="1"), Ranks(rank=0, world_size=2)),  # tasks 1 and 9
        ({**array(1, 3), **slurm(1, 2)},
         Ranks(rank=3, world_size=6, local_rank=1, local_world_size=2, reports=False)),
        ({**slurm(1, 2), "RANK": "0", "WORLD_SIZE": "3"}, Ranks(world_size=3, local_world_size=3)),  # torchrun by srun
    ],
)  # fmt: skip
def test_the_environment_of_launchers_is_understood(environment, expected):
    assert Ranks.from_environment(environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0"}, "RANK is set and its twin is not: set both RANK and WORLD_SIZE, or neither"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set and its twin is not"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "the environment says RANK=one: it must be"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "the environment says RANK=-1: it must be"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "rank is 2 of 2 processes: it must be from 0 to one less than that"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "world_size is 0: it must be"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "4", "LOCAL_WORLD_SIZE": "4"}, "local_rank is 4 of 4 proc"),
        (array("x", 2), "the environment says SLURM_ARRAY_TASK_ID=x: it must be"),
        (slurm(0, 2, SLURM_TASKS_PER_NODE="many"), "the environment says SLURM_TASKS_PER_NODE=many: it must be"),
    ],
)  # fmt: skip
def test_nonsense_in_the_environment_is_one_sentence(environment, message):
    with pytest.raises(ValueError, match=message):
        Ranks.from_environment(environment)


def test_processes_start_far_apart_and_try_every_shard():
    orders = [Ranks(rank=rank, world_size=3).order(7) for rank in range(3)]
    assert [order[0] for order in orders] == [0, 2, 4]
    assert all(sorted(order) == list(range(7)) for order in orders)


def test_each_finished_shard_is_checked_by_one_process():
    ranks = [Ranks(rank=rank, world_size=3) for rank in range(3)]
    assert all(sum(one.checks(shard) for one in ranks) == 1 for shard in range(20))


def test_the_work_of_a_process_can_be_split():
    workers = [Ranks(rank=1, world_size=2).split(number, 3) for number in range(3)]
    assert [(one.rank, one.world_size) for one in workers] == [(3, 6), (4, 6), (5, 6)]
