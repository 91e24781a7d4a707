"""What launchers say by the environment."""

import pytest

from imagegpt.jobs.ranks import Workers


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Workers()),
        ({"LOCAL_RANK": "3"}, Workers()),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Workers()),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Workers(rank=1, world_size=2, local_rank=1, local_world_size=2)),
        (
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
            Workers(rank=5, world_size=8, local_rank=1, local_world_size=4),
        ),
    ],
)
def test_the_environment_of_launchers_is_understood(environment, expected):
    assert Workers.from_environment(environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0"}, "RANK is set and its twin is not: set both RANK and WORLD_SIZE, or neither"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set and its twin is not"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "the environment says RANK=one: it must be a whole number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "the environment says RANK=-1: it must be a whole number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "rank is 2 of 2 processes: it must be from 0 to one less than that"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "world_size is 0: it must be a whole number from 1"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "4", "LOCAL_WORLD_SIZE": "4"},
            "local_rank is 4 of 4 processes",
        ),
    ],
)
def test_nonsense_in_the_environment_is_one_sentence(environment, message):
    with pytest.raises(ValueError, match=message):
        Workers.from_environment(environment)


def test_each_block_has_one_owner():
    workers = [Workers(rank=rank, world_size=3) for rank in range(3)]
    assert [[worker.owns(block) for worker in workers].index(True) for block in range(5)] == [0, 1, 2, 0, 1]
    assert all(sum(worker.owns(block) for worker in workers) == 1 for block in range(20))
