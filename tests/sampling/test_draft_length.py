"""The length of drafts is chosen by the clock, and settles soon."""

import random

import pytest

from imagegpt.sampling.draft_length import DraftLength


def simulate(speed_of, num_passes, most=1024):
    """Lengths chosen when a pass of length n takes and accepts what `speed_of(n)` says."""
    draft_length, chosen = DraftLength(most), []
    for _ in range(num_passes):
        length = draft_length.choose()
        draft_length.observe(length, *speed_of(length))
        chosen.append(length)
    return draft_length, chosen


def test_the_draft_length_becomes_long_when_long_runs_cost_nothing():
    draft_length, chosen = simulate(lambda n: (n**0.5, 1.0), 400)
    assert draft_length.best == 64
    assert chosen[:50].count(64) >= 8
    assert chosen[100:].count(64) >= 270


def test_the_draft_length_becomes_one_when_no_draft_is_right_and_little_time_is_lost():
    draft_length, chosen = simulate(lambda n: (1.0, 1.0 + n / 16), 1024)
    assert draft_length.best == 1
    lost = sum(1 + n / 16 for n in chosen) / (1024 * (1 + 1 / 16)) - 1
    assert lost < 0.05


def test_the_draft_length_follows_when_things_change():
    draft_length, _ = simulate(lambda n: (1.0, 1.0 + n / 16), 200)
    for _ in range(2000):
        length = draft_length.choose()
        draft_length.observe(length, n_accepted(length), 1.0)
    assert draft_length.best >= 16


def n_accepted(length):
    return length**0.5


@pytest.mark.parametrize("seed", range(5))
def test_what_is_right_by_chance_does_not_mislead(seed):
    """Passes as on the colour model: how many pixels are accepted varies as much as it is."""
    chance = random.Random(seed)
    mean = {1: 1.0, 4: 2.0, 8: 2.8, 16: 3.7, 32: 5.2, 64: 5.9}
    seconds = {1: 0.84, 4: 0.98, 8: 1.0, 16: 1.36, 32: 1.94, 64: 3.16}

    def speed_of(n):
        run = 1 + int(chance.expovariate(1 / (mean[n] - 0.5))) if n > 1 else 1
        return min(run, n), seconds[n] * chance.uniform(0.9, 1.3)

    _, chosen = simulate(speed_of, 1500)
    assert sum(n in (8, 16, 32) for n in chosen) > 0.9 * len(chosen)


def test_passes_that_live_on_the_drafts_of_another_length_do_not_count():
    """A short run looks good behind a long one, which has refined its drafts, and the first pass may compile."""
    draft_length, chosen = DraftLength(1024), []
    for _ in range(600):
        length = draft_length.choose()
        fresh = chosen[-2:] != [length] * 2
        draft_length.observe(length, length if fresh and length < 16 else length**0.5, 100.0 if not chosen else 1.0)
        chosen.append(length)
    assert draft_length.best == 64


def test_lengths_stay_within_the_image():
    for most in (1, 3, 5, 64):
        _, chosen = simulate(lambda n: (n, 1.0), 50, most)
        assert max(chosen) <= most
