"""The permutation is one, for every size; it looks random; and it is fast, since it is computed for every batch."""

import time

import numpy as np
import pytest

from imagegpt.data.shuffling import random_subset, shuffled_indices

SIZES = sorted(
    {*range(1, 40), 97, 101, 997, 1297, 7919, 10_007, 65_537}
    | {2**power + change for power in range(2, 16) for change in (-1, 0, 1)}
)


def permutation(num_images, *key):
    return shuffled_indices(np.arange(num_images), num_images, key)


@pytest.mark.parametrize("num_images", SIZES)
def test_it_is_a_permutation_of_any_size(num_images):
    for seed in range(3):
        assert np.array_equal(np.sort(permutation(num_images, seed, 0)), np.arange(num_images))


def test_it_depends_on_the_key_alone():
    whole = permutation(1000, 3, 4)
    assert np.array_equal(whole, permutation(1000, 3, 4))
    positions = np.array([999, 0, 500, 500])
    assert np.array_equal(shuffled_indices(positions, 1000, (3, 4)), whole[positions])
    others = [permutation(1000, 3, 5), permutation(1000, 4, 4), permutation(1000, 4, 3)]
    assert all((other == whole).mean() < 0.02 for other in others)


def test_an_index_far_beyond_memory():
    positions = np.array([0, 1, 2**62 - 1])
    indices = shuffled_indices(positions, 2**62, (0,))
    assert len(set(indices.tolist())) == 3
    assert ((indices >= 0) & (indices < 2**62)).all()


@pytest.mark.parametrize("num_images", [3, 10])
def test_every_image_comes_to_every_position_equally_often(num_images):
    """Chi-squared over 1,500 keys, (N - 1)^2 degrees of freedom; the limit is 5 standard deviations above the mean."""
    counts, positions = np.zeros((num_images, num_images)), np.arange(num_images)
    for seed in range(1500):
        counts[positions, permutation(num_images, seed)] += 1
    expected = 1500 / num_images
    degrees = (num_images - 1) ** 2
    assert ((counts - expected) ** 2 / expected).sum() < degrees + 5 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("num_images", [1000, 1024, 50_000, 65_537])
def test_it_looks_like_a_random_permutation(num_images):
    """Fixed points, correlation with the order, neighbours that stay neighbours, and spread within a batch."""
    for seed in range(5):
        indices, positions = permutation(num_images, seed, 7), np.arange(num_images)
        assert (indices == positions).sum() < 10  # Poisson with mean 1
        limit = 5 / np.sqrt(num_images)
        assert abs(np.corrcoef(positions, indices)[0, 1]) < limit
        assert abs(np.corrcoef(indices[:-1], indices[1:])[0, 1]) < limit
        assert (np.abs(np.diff(indices)) == 1).sum() < 15  # Poisson with mean 2
        for stride in (2, 4, 256):  # a batch must not favour images of one residue, for example of one class
            share = (indices[: num_images // 4] % stride == 0).mean()
            deviation = np.sqrt(1 / stride * (1 - 1 / stride) / (num_images // 4))
            assert abs(share - 1 / stride) < 5 * deviation


def test_a_million_indices_take_a_fraction_of_a_second():
    fastest = np.inf
    for _ in range(3):
        started = time.process_time()
        permutation(1_000_000, 0, 0)
        fastest = min(fastest, time.process_time() - started)
    assert fastest < 1.0


def test_a_random_subset_is_ascending_and_spread():
    subset = random_subset(10_000, 1_000, seed=0)
    assert (np.diff(subset) > 0).all()
    assert len(subset) == 1_000
    counts = np.histogram(subset, bins=10, range=(0, 10_000))[0]
    assert ((counts > 60) & (counts < 140)).all()
    assert np.array_equal(subset, random_subset(10_000, 1_000, seed=0))
    assert not np.array_equal(subset, random_subset(10_000, 1_000, seed=1))
    assert random_subset(5, 10, seed=0).tolist() == [0, 1, 2, 3, 4]
