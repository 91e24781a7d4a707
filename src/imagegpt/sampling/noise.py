"""Gumbel noise from a counter-based random number generator, and the seeds of images.

Each number is a function of (seed of the image, pixel, colour) alone. An image therefore does not depend on the batch
it is sampled in, on the device, or on the order in which its pixels are computed.

Axes: B images, P pixels in raster order, V colours.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from imagegpt.common import ranges

_MASK_32 = 0xFFFFFFFF
_MASK_64 = 0xFFFFFFFFFFFFFFFF

# Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011): multipliers and key increments
# of Philox4x32.
_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_PHILOX_ROUNDS = 10

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15  # SplitMix64's increment: 2^64 divided by the golden ratio


def gumbel_noise(seeds: Int64[Tensor, " b"], pixels: Int64[Tensor, " p"], num_colors: int) -> Float32[Tensor, "b p v"]:
    """Standard Gumbel noise, -log(-log(u)), each number a function of (seed, pixel, colour) alone.

    Colour v of pixel p is word v % 4 of Philox4x32-10 with the counter (v // 4, p, 0, 0) and the seed as its key, low
    half first. A word w becomes u = 1 - (w + 1/2) / 2^32, which lies strictly inside (0, 1) and has its finest steps
    near 1, where the largest values come from. Both logarithms are computed in float64 and rounded once: float32
    logarithms differ in the last bit between devices and vector widths.

    Args:
        seeds: one 64-bit seed per image, see `seed_tensor`.
        pixels: raster indices, >= 0. One call for many pixels is much faster than many calls.
        num_colors: V; the noise of a colour does not depend on it.
    Returns: values in about -3.2 to 22.9, on the device of `seeds`.
    """
    num_blocks = -(-num_colors // 4)
    seeds = seeds.view(-1, 1, 1)
    shape = (seeds.shape[0], pixels.shape[0], num_blocks)
    blocks = torch.arange(num_blocks, device=seeds.device).expand(shape)
    zero = torch.zeros((), dtype=torch.int64, device=seeds.device)
    counter = (blocks, pixels.to(seeds.device).view(1, -1, 1), zero, zero)
    words = torch.stack(philox(counter, (seeds & _MASK_32, (seeds >> 32) & _MASK_32)), dim=-1)
    one_minus_u = words.flatten(2)[:, :, :num_colors].double().add_(0.5).mul_(2.0**-32)
    return one_minus_u.neg_().log1p_().neg_().log_().neg_().float()


def philox(counter: Sequence[Int64[Tensor, "..."]], key: Sequence[Int64[Tensor, "..."]]) -> list[Int64[Tensor, "..."]]:
    """Philox4x32-10: four random 32-bit words for each counter and key.

    Args:
        counter: four broadcastable int64 tensors of 32-bit words, 0 to 2^32 - 1.
        key: two such tensors.
    Returns: four int64 tensors of 32-bit words.
    Source: Salmon et al. 2011 (see the top), tested against the vectors they publish.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_PHILOX_ROUNDS):
        # int64 multiplication wraps around and so keeps all 64 bits of the unsigned product. The right shift is
        # arithmetic: the mask removes the copies of the sign bit.
        product_0, product_1 = c0 * _PHILOX_MULTIPLIERS[0], c2 * _PHILOX_MULTIPLIERS[1]
        c0 = ((product_1 >> 32) & _MASK_32) ^ c1 ^ k0
        c2 = ((product_0 >> 32) & _MASK_32) ^ c3 ^ k1
        c1, c3 = product_1 & _MASK_32, product_0 & _MASK_32
        k0, k1 = (k0 + _PHILOX_INCREMENTS[0]) & _MASK_32, (k1 + _PHILOX_INCREMENTS[1]) & _MASK_32
    return [c0, c1, c2, c3]


def image_seed(seed: int, index: int) -> int:
    """The seed of image `index` in a run, a function of `seed` and `index` alone.

    Args:
        seed: of the run, 0 to 2^64 - 1.
        index: of the image, 0 to 2^64 - 1.
    Returns: 0 to 2^64 - 1. Different indices of one run never share a seed.
    Raises: ValueError for numbers outside these ranges.
    Source: output `index` of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators" 2014),
        started at the mixed seed, so that runs with neighbouring seeds are unrelated.
    """
    seed, index = ranges.SEED.check("seed", seed), ranges.INDEX.check("the index of an image", index)
    return _mix(_mix(seed) + (index + 1) * _GOLDEN_GAMMA)


def seed_tensor(seeds: Sequence[int], device: torch.device | str = "cpu") -> Int64[Tensor, " b"]:
    """Convert 64-bit seeds to a tensor; the upper half of their range becomes negative.

    Raises: ValueError if a seed is not an integer from 0 to 2^64 - 1.
    """
    checked = [ranges.SEED.check("seed", seed) for seed in seeds]
    signed = [seed - (1 << 64) if seed >> 63 else seed for seed in checked]
    return torch.tensor(signed, dtype=torch.int64, device=device)


def _mix(x: int) -> int:
    """SplitMix64's output function, a bijection of 64-bit numbers."""
    x &= _MASK_64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return x ^ (x >> 31)
