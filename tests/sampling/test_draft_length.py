"""The draft length adapts to measured throughput."""

import random

import pytest

from imagegpt.sampling.draft_length import DraftLengthTuner


def simulate(speed_of, num_passes, max_length=1024):
    """Run the tuner; `speed_of(n)` returns the accepted pixels and seconds of a pass of length n."""
    tuner, chosen = DraftLengthTuner(max_length), []
    for _ in range(num_passes):
        length = tuner.choose()
        tuner.observe(length, *speed_of(length))
        chosen.append(length)
    return tuner, chosen


def test_long_drafts_when_they_cost_nothing():
    tuner, chosen = simulate(lambda n: (n**0.5, 1.0), 400)
    assert tuner.best == 64
    assert chosen[:50].count(64) >= 8
    assert chosen[100:].count(64) >= 270


def test_no_drafts_when_none_is_accepted():
    tuner, chosen = simulate(lambda n: (1.0, 1.0 + n / 16), 1024)
    assert tuner.best == 1
    lost = sum(1 + n / 16 for n in chosen) / (1024 * (1 + 1 / 16)) - 1
    assert lost < 0.05


def test_the_draft_length_adapts_to_changes():
    tuner, _ = simulate(lambda n: (1.0, 1.0 + n / 16), 200)
    for _ in range(2000):
        length = tuner.choose()
        tuner.observe(length, n_accepted(length), 1.0)
    assert tuner.best >= 16


def n_accepted(length):
    return length**0.5


@pytest.mark.parametrize("seed", range(5))
def test_noise_does_not_mislead_the_tuner(seed):
    """As on the colour model, the standard deviation of the accepted pixels is as large as their mean."""
    rng = random.Random(seed)
    mean = {1: 1.0, 4: 2.0, 8: 2.8, 16: 3.7, 32: 5.2, 64: 5.9}
    seconds = {1: 0.84, 4: 0.98, 8: 1.0, 16: 1.36, 32: 1.94, 64: 3.16}

    def speed_of(n):
        accepted = 1 + int(rng.expovariate(1 / (mean[n] - 0.5))) if n > 1 else 1
        return min(accepted, n), seconds[n] * rng.uniform(0.9, 1.3)

    _, chosen = simulate(speed_of, 1500)
    assert sum(n in (8, 16, 32) for n in chosen) > 0.9 * len(chosen)


def test_passes_after_a_change_of_length_are_not_measured():
    """A short pass looks good after a long one, which refined its drafts, and the first pass may compile kernels."""
    tuner, chosen = DraftLengthTuner(1024), []
    for _ in range(600):
        length = tuner.choose()
        fresh = chosen[-2:] != [length] * 2
        tuner.observe(length, length if fresh and length < 16 else length**0.5, 100.0 if not chosen else 1.0)
        chosen.append(length)
    assert tuner.best == 64


def test_lengths_stay_within_the_image():
    for max_length in (1, 3, 5, 64):
        _, chosen = simulate(lambda n: (n, 1.0), 50, max_length)
        assert max(chosen) <= max_length
