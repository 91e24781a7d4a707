"""Noise and seeds: published test vectors, literals, and statistics with fixed seeds."""

import math

import pytest
import torch

from imagegpt.sampling.noise import gumbel_noise, image_seed, philox, seed_tensor


def as_words(text):
    return [torch.tensor(int(word, 16)) for word in text.split()]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_matches_the_published_vectors(counter, key, expected):
    assert philox(as_words(counter), as_words(key)) == as_words(expected)


def test_noise_uses_the_documented_counter_and_key():
    seed = 0xA4093822_299F31D0
    noise = gumbel_noise(seed_tensor([seed]), torch.tensor([7]), 6)
    for color in range(6):
        words = philox([torch.tensor(x) for x in (color // 4, 7, 0, 0)], as_words("299f31d0 a4093822"))
        u = 1 - (int(words[color % 4]) + 0.5) / 2**32
        assert noise[0, 0, color].item() == pytest.approx(-math.log(-math.log(u)), abs=1e-6)


def test_noise_does_not_depend_on_batch_chunk_or_palette():
    seeds = seed_tensor([image_seed(3, index) for index in range(5)])
    whole = gumbel_noise(seeds, torch.arange(20), 19)
    assert torch.equal(whole[3:4], gumbel_noise(seeds[3:4], torch.arange(20), 19))
    assert torch.equal(whole[:, 11:13], gumbel_noise(seeds, torch.arange(11, 13), 19))
    assert torch.equal(whole[:, :, :5], gumbel_noise(seeds, torch.arange(20), 5))
    assert whole.unique().numel() == whole.numel(), "every value comes from a different word"


def test_noise_follows_the_gumbel_distribution():
    noise = gumbel_noise(seed_tensor(range(64)), torch.arange(256), 64).double()
    assert -3.2 < noise.min() < -2.4
    assert 12 < noise.max() < 22.9
    assert noise.mean().item() == pytest.approx(0.5772157, abs=5 * 1.2825 / 1024)  # Euler's constant
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.02)


def test_extreme_words_give_finite_noise(monkeypatch):
    for word, expected in ((0, 22.8739), (0xFFFFFFFF, -3.1300)):
        monkeypatch.setattr(
            "imagegpt.sampling.noise.philox", lambda counter, key, word=word: [torch.full((1, 1, 1), word)] * 4
        )
        assert gumbel_noise(seed_tensor([0]), torch.arange(1), 4)[0, 0].tolist() == pytest.approx(
            [expected] * 4, abs=1e-4
        )


def test_64_bit_seeds_keep_all_their_bits():
    assert seed_tensor([0, 2**63, 2**64 - 1]).tolist() == [0, -(2**63), -1]
    a, b = (gumbel_noise(seed_tensor([s]), torch.arange(1), 4) for s in (5, 5 + 2**63))
    assert not torch.equal(a, b)


def test_image_seeds_are_splitmix64_and_do_not_collide():
    # SplitMix64 maps a state of 0 to 0 before its increment, so seed 0 gives the generator's published first outputs.
    assert [image_seed(0, index) for index in range(3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]
    gamma = 0x9E3779B97F4A7C15  # otherwise the run of this seed would be that of seed 0, shifted by one image
    assert image_seed(gamma, 0) != image_seed(0, 1)
    seeds = {image_seed(seed, index) for seed in range(40) for index in range(500)}
    assert len(seeds) == 40 * 500


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5])
def test_out_of_range_seeds_are_refused(seed):
    for function in (lambda: image_seed(seed, 0), lambda: seed_tensor([seed])):
        with pytest.raises(ValueError, match=f"^seed is {seed}: it must be an integer from 0 to "):
            function()
    with pytest.raises(ValueError, match="index of an image is -1"):
        image_seed(0, -1)
