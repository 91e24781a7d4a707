"""Random permutations that are computed, not stored: where does the n-th of N images come from in this epoch?

A Feistel network permutes the numbers of ceil(log2 N) bits; a result of N or more is permuted again until it is below N
(cycle walking), which keeps the map a bijection and takes fewer than two passes on average. So any process finds the
images of its batch in O(batch size) time and memory, whatever N is.

Sources: Luby and Rackoff 1988, "How to construct pseudorandom permutations"; Black and Rogaway 2002, "Ciphers with
arbitrary finite domains"; the round function mixes as SplitMix64 does (Steele et al. 2014). grain's `index_shuffle`
works alike.

Axis letters: n indices.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt64

_MIN_ROUNDS = 4  # each changes both halves, so these are 8 rounds in the usual count, of which a cipher needs 4
_MIN_ROUND_BITS = 64  # rounds times bits: short numbers need more rounds, since there are few functions of few bits
_SUBSET = 3  # separates the permutation of `random_subset` from those of the epochs


def shuffled_indices(
    positions: Int64[np.ndarray, " n"], num_images: int, key: Sequence[int]
) -> Int64[np.ndarray, " n"]:
    """Look up positions in a random permutation of 0 to N - 1.

    Args:
        positions: 0 to N - 1, in any order.
        num_images: N, 1 to 2^62.
        key: non-negative integers that select the permutation, for example (seed, epoch).
    """
    num_bits = max(1, (num_images - 1).bit_length())
    num_rounds = max(_MIN_ROUNDS, _MIN_ROUND_BITS // num_bits)
    keys = np.random.SeedSequence(tuple(key)).generate_state(2 * num_rounds, np.uint64)
    result = _permuted(positions.astype(np.uint64), num_bits, keys)
    outside = np.flatnonzero(result >= num_images)
    while len(outside):
        result[outside] = _permuted(result[outside], num_bits, keys)
        outside = outside[result[outside] >= num_images]
    return result.astype(np.int64)


def random_subset(num_images: int, num_chosen: int, seed: int) -> Int64[np.ndarray, " n"]:
    """Choose `num_chosen` of the images at random, or all if there are no more; the indices are ascending."""
    positions = np.arange(min(num_chosen, num_images))
    return np.sort(shuffled_indices(positions, num_images, (seed, num_images, _SUBSET)))


def mix_bits(values: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Hash 64-bit numbers, one to one. Source: the output function of SplitMix64 (Steele et al. 2014)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))


def _permuted(
    values: UInt64[np.ndarray, " n"], num_bits: int, keys: UInt64[np.ndarray, " k"]
) -> UInt64[np.ndarray, " n"]:
    """Permute numbers of `num_bits` bits: each half is changed by a hash of the other."""
    num_low = np.uint64((num_bits + 1) // 2)
    low_mask = (np.uint64(1) << num_low) - np.uint64(1)
    high_mask = (np.uint64(1) << (np.uint64(num_bits) - num_low)) - np.uint64(1)
    high, low = values >> num_low, values & low_mask
    for key in keys.reshape(-1, 2):
        high = high ^ (mix_bits(low ^ key[0]) & high_mask)
        low = low ^ (mix_bits(high ^ key[1]) & low_mask)
    return (high << num_low) | low
