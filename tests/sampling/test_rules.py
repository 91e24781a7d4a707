"""Sampling rules: literals to check by eye, and statistics with fixed seeds."""

import math

import pytest
import torch

from imagegpt.sampling.noise import gumbel_noise, seed_tensor
from imagegpt.sampling.rules import SamplingRules, filter_logits, sample_colors

INF = math.inf


def allowed(logits, **rules):
    return torch.isfinite(filter_logits(torch.tensor([logits]), SamplingRules(**rules)))[0].tolist()


def test_top_k_keeps_exactly_k_and_ties_go_to_the_lower_index():
    assert allowed([0.0, 2.0, 1.0, 2.0, 1.0], top_k=3) == [False, True, True, True, False]
    assert allowed([1.0, 1.0, 1.0, 1.0], top_k=2) == [True, True, False, False]
    assert allowed([1.0, 3.0], top_k=99) == [True, True]
    assert allowed([0.0, 1.0] * 256, top_k=300) == [i % 2 == 1 or i < 88 for i in range(512)]


def test_top_p_keeps_the_smallest_set_with_that_probability():
    logits = [math.log(p) for p in (0.1, 0.4, 0.3, 0.2)]
    assert allowed(logits, top_p=0.65) == [False, True, True, False]
    assert allowed(logits, top_p=0.75) == [False, True, True, True]
    assert allowed(logits, top_p=0.01) == [False, True, False, False]
    assert allowed(logits, top_p=1.0) == [True] * 4
    assert allowed([0.0, 0.0, 0.0, 0.0], top_p=0.5) == [True, True, False, False]


def test_top_p_applies_after_the_temperature():
    logits = [math.log(p) for p in (0.1, 0.4, 0.3, 0.2)]
    assert allowed(logits, top_p=0.65, temperature=0.2) == [False, True, False, False]
    assert allowed(logits, top_p=0.65, temperature=5.0) == [False, True, True, True]


def test_min_p_is_relative_to_the_most_likely_colour():
    logits = [math.log(p) for p in (0.1, 0.4, 0.3, 0.2)]
    assert allowed(logits, min_p=0.6) == [False, True, True, False]
    assert allowed(logits, min_p=0.0) == [True] * 4
    assert allowed(logits, top_k=3, min_p=0.6) == [False, True, True, False]


def test_rules_apply_in_order_to_the_renormalised_distribution():
    logits = [math.log(p) for p in (0.1, 0.4, 0.3, 0.2)]
    # After top_k, the first of two colours has 4/7 of the mass: enough for top_p = 0.55, unlike its original 0.4.
    assert allowed(logits, top_k=2, top_p=0.55) == [False, True, False, False]


def test_filtering_does_not_edit_its_input_or_the_allowed_logits():
    logits = torch.randn(3, 12)
    before = logits.clone()
    filtered = filter_logits(logits, SamplingRules(top_k=4, top_p=0.9, min_p=0.01, temperature=0.7))
    assert torch.equal(logits, before)
    assert torch.equal(filtered[filtered > -INF], before[filtered > -INF])
    assert ((filtered > -INF).sum(dim=-1) <= 4).all()


def test_greedy_breaks_ties_by_the_lowest_index_and_ignores_noise():
    logits = torch.tensor([[1.0, 5.0, 5.0], [2.0, 2.0, 2.0]])
    noise = torch.full((2, 3), torch.nan)
    for rules in (SamplingRules(temperature=0), SamplingRules(top_k=1)):
        assert sample_colors(logits, noise, rules).tolist() == [1, 0]
        assert sample_colors(logits, None, rules).tolist() == [1, 0]
        assert torch.isfinite(filter_logits(logits, rules)).tolist() == [[False, True, False], [True, False, False]]


def test_extreme_temperatures():
    logits = torch.tensor([[300.0, -300.0, 299.0]])
    noise = gumbel_noise(seed_tensor([1]), torch.arange(1), 3)[:, 0]
    assert sample_colors(logits, noise, SamplingRules(temperature=1e-300, top_p=0.9)).item() == 0
    many = gumbel_noise(seed_tensor(range(80)), torch.arange(100), 3).flatten(0, 1)
    sampled = sample_colors(logits.expand(8000, -1), many, SamplingRules(temperature=1000))
    expected = 8000 * (logits[0] / 1000).softmax(dim=0)
    assert torch.bincount(sampled, minlength=3).tolist() == pytest.approx(expected.tolist(), rel=0.05)


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
def test_samples_follow_the_distribution(rules):
    """Chi-square against softmax(filtered / temperature); seeds are fixed, so this cannot fail by chance."""
    num = 40_000
    logits = torch.tensor([[1.0, -0.5, 0.3, 2.0, -2.0, 0.0, 1.4, -1.0]])
    noise = gumbel_noise(seed_tensor(range(num // 100)), torch.arange(100), 8).flatten(0, 1)
    counts = torch.bincount(sample_colors(logits.expand(num, -1), noise, rules), minlength=8).double()
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
def test_out_of_range_rules_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"^{field} is {value!r}: it must "):
        SamplingRules(**{field: value})


def test_str_lists_the_active_rules():
    assert str(SamplingRules(temperature=0.5, top_k=40, top_p=0.9)) == "temperature 0.5, top-k 40, top-p 0.9"
