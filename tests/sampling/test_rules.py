"""The rules and the noise: literals to check by eye, published vectors, and statistics with fixed seeds."""

import math

import pytest
import torch

from imagegpt.sampling.rules import SamplingRules, draw, filter_logits, gumbel_noise, image_seed, philox, seed_tensor

INF = math.inf


def as_words(text):
    return [torch.tensor(int(word, 16)) for word in text.split()]


def kept(logits, **rules):
    return torch.isfinite(filter_logits(torch.tensor([logits]), SamplingRules(**rules)))[0].tolist()


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_words_its_authors_published(counter, key, expected):
    assert philox(as_words(counter), as_words(key)) == as_words(expected)


def test_noise_lays_out_seed_pixel_and_colour_as_documented():
    seed = 0xA4093822_299F31D0
    noise = gumbel_noise(seed_tensor([seed]), torch.tensor([7]), 6)
    for color in range(6):
        words = philox([torch.tensor(x) for x in (color // 4, 7, 0, 0)], as_words("299f31d0 a4093822"))
        u = 1 - (int(words[color % 4]) + 0.5) / 2**32
        assert noise[0, 0, color].item() == pytest.approx(-math.log(-math.log(u)), abs=1e-6)


def test_noise_is_the_same_bits_in_any_batch_chunk_and_palette():
    seeds = seed_tensor([image_seed(3, index) for index in range(5)])
    whole = gumbel_noise(seeds, torch.arange(20), 19)
    assert torch.equal(whole[3:4], gumbel_noise(seeds[3:4], torch.arange(20), 19))
    assert torch.equal(whole[:, 11:13], gumbel_noise(seeds, torch.arange(11, 13), 19))
    assert torch.equal(whole[:, :, :5], gumbel_noise(seeds, torch.arange(20), 5))
    assert whole.unique().numel() == whole.numel(), "no two numbers share a word"


def test_noise_is_gumbel():
    noise = gumbel_noise(seed_tensor(range(64)), torch.arange(256), 64).double()
    assert -3.2 < noise.min() < -2.4
    assert 12 < noise.max() < 22.9
    assert noise.mean().item() == pytest.approx(0.5772157, abs=5 * 1.2825 / 1024)  # Euler's constant
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.02)


def test_the_extreme_words_stay_inside_the_open_interval(monkeypatch):
    for word, expected in ((0, 22.8739), (0xFFFFFFFF, -3.1300)):
        monkeypatch.setattr(
            "imagegpt.sampling.rules.philox", lambda counter, key, word=word: [torch.full((1, 1, 1), word)] * 4
        )
        assert gumbel_noise(seed_tensor([0]), torch.arange(1), 4)[0, 0].tolist() == pytest.approx(
            [expected] * 4, abs=1e-4
        )


def test_seeds_beyond_63_bits_keep_all_their_bits():
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
    gamma = 0x9E3779B97F4A7C15  # a run that starts one step later must not be the same run shifted by an image
    assert image_seed(gamma, 0) != image_seed(0, 1)
    seeds = {image_seed(seed, index) for seed in range(40) for index in range(500)}
    assert len(seeds) == 40 * 500


def test_top_k_keeps_exactly_k_and_ties_go_to_the_lower_index():
    assert kept([0.0, 2.0, 1.0, 2.0, 1.0], top_k=3) == [False, True, True, True, False]
    assert kept([1.0, 1.0, 1.0, 1.0], top_k=2) == [True, True, False, False]
    assert kept([1.0, 3.0], top_k=99) == [True, True]
    assert kept([0.0, 1.0] * 256, top_k=300) == [i % 2 == 1 or i < 88 for i in range(512)]


def test_top_p_keeps_the_smallest_set_that_reaches_the_share():
    logits = [math.log(p) for p in (0.1, 0.4, 0.3, 0.2)]
    assert kept(logits, top_p=0.65) == [False, True, True, False]
    assert kept(logits, top_p=0.75) == [False, True, True, True]
    assert kept(logits, top_p=0.01) == [False, True, False, False]
    assert kept(logits, top_p=1.0) == [True] * 4
    assert kept([0.0, 0.0, 0.0, 0.0], top_p=0.5) == [True, True, False, False]


def test_top_p_is_taken_of_the_tempered_distribution():
    logits = [math.log(p) for p in (0.1, 0.4, 0.3, 0.2)]
    assert kept(logits, top_p=0.65, temperature=0.2) == [False, True, False, False]
    assert kept(logits, top_p=0.65, temperature=5.0) == [False, True, True, True]


def test_min_p_is_relative_to_the_likeliest():
    logits = [math.log(p) for p in (0.1, 0.4, 0.3, 0.2)]
    assert kept(logits, min_p=0.6) == [False, True, True, False]
    assert kept(logits, min_p=0.0) == [True] * 4
    assert kept(logits, top_k=3, min_p=0.6) == [False, True, True, False]


def test_rules_apply_in_order_each_to_what_is_left():
    logits = [math.log(p) for p in (0.1, 0.4, 0.3, 0.2)]
    # Of the two that top_k leaves, the first has 4/7 of the mass: enough for top_p = 0.55, which 0.4 alone is not.
    assert kept(logits, top_k=2, top_p=0.55) == [False, True, False, False]


def test_filtering_edits_nothing_and_leaves_kept_logits_alone():
    logits = torch.randn(3, 12)
    before = logits.clone()
    filtered = filter_logits(logits, SamplingRules(top_k=4, top_p=0.9, min_p=0.01, temperature=0.7))
    assert torch.equal(logits, before)
    assert torch.equal(filtered[filtered > -INF], before[filtered > -INF])
    assert ((filtered > -INF).sum(dim=-1) <= 4).all()


def test_greedy_takes_the_lowest_index_of_equals_and_looks_at_no_noise():
    logits = torch.tensor([[1.0, 5.0, 5.0], [2.0, 2.0, 2.0]])
    noise = torch.full((2, 3), torch.nan)
    for rules in (SamplingRules(temperature=0), SamplingRules(top_k=1)):
        assert draw(logits, noise, rules).tolist() == [1, 0]
        assert draw(logits, None, rules).tolist() == [1, 0]
        assert torch.isfinite(filter_logits(logits, rules)).tolist() == [[False, True, False], [True, False, False]]


def test_the_lowest_and_the_highest_temperature_draw_as_they_should():
    logits = torch.tensor([[300.0, -300.0, 299.0]])
    noise = gumbel_noise(seed_tensor([1]), torch.arange(1), 3)[:, 0]
    assert draw(logits, noise, SamplingRules(temperature=1e-300, top_p=0.9)).item() == 0
    many = gumbel_noise(seed_tensor(range(80)), torch.arange(100), 3).flatten(0, 1)
    drawn = draw(logits.expand(8000, -1), many, SamplingRules(temperature=1000))
    expected = 8000 * (logits[0] / 1000).softmax(dim=0)
    assert torch.bincount(drawn, minlength=3).tolist() == pytest.approx(expected.tolist(), rel=0.05)


@pytest.mark.parametrize(
    "rules",
    [
        SamplingRules(),
        SamplingRules(temperature=0.6),
        SamplingRules(top_k=4),
        SamplingRules(temperature=1.5, top_p=0.8),
        SamplingRules(min_p=0.2),
    ],
    ids=str,
)
def test_draws_follow_the_distribution(rules):
    """Chi-square against softmax(filtered / temperature); seeds are fixed, so this cannot fail by chance."""
    num = 40_000
    logits = torch.tensor([[1.0, -0.5, 0.3, 2.0, -2.0, 0.0, 1.4, -1.0]])
    noise = gumbel_noise(seed_tensor(range(num // 100)), torch.arange(100), 8).flatten(0, 1)
    counts = torch.bincount(draw(logits.expand(num, -1), noise, rules), minlength=8).double()
    expected = num * (filter_logits(logits, rules) / rules.temperature).softmax(dim=-1)[0].double()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum().item()
    freedom = int(possible.sum()) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)  # about the 99.9 % quantile


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", INF), ("temperature", "hot"),
        ("temperature", True), ("top_k", 0), ("top_k", 2.5), ("top_k", True), ("top_p", 0.0), ("top_p", 1.01),
        ("top_p", math.nan), ("min_p", -0.1), ("min_p", 1.1),
    ],
)  # fmt: skip
def test_impossible_rules_are_refused_with_the_number(field, value):
    with pytest.raises(ValueError, match=rf"^{field} is {value!r}: it must "):
        SamplingRules(**{field: value})


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5])
def test_impossible_seeds_are_refused(seed):
    for function in (lambda: image_seed(seed, 0), lambda: seed_tensor([seed])):
        with pytest.raises(ValueError, match=f"^seed is {seed}: it must be a whole number from 0 to "):
            function()
    with pytest.raises(ValueError, match="index of an image is -1"):
        image_seed(0, -1)


def test_rules_say_what_they_are():
    assert str(SamplingRules(temperature=0.5, top_k=40, top_p=0.9)) == "temperature 0.5, top-k 40, top-p 0.9"
