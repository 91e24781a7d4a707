"""Samples follow the model's exact distribution: a chi-square test over all images of a tiny model."""

import itertools

import pytest
import torch
from scipy.stats import chi2

from helpers import randomize, tiny_config
from imagegpt import ImageGPTForCausalImageModeling
from imagegpt.sampling import Sampler, SamplingRules
from imagegpt.sampling import session as module
from imagegpt.sampling.noise import gumbel_noise
from imagegpt.sampling.rules import filter_logits
from naive import fixed_draft_lengths

NUM_COLORS, NUM_PIXELS, NUM_SAMPLES = 3, 4, 20_000
IMAGES = torch.tensor(list(itertools.product(range(NUM_COLORS), repeat=NUM_PIXELS)))  # all 81

RULES = [SamplingRules(), SamplingRules(temperature=0.7), SamplingRules(top_k=2), SamplingRules(top_p=0.75)]


@pytest.fixture(scope="module")
def model():
    made = ImageGPTForCausalImageModeling(
        tiny_config(vocab_size=NUM_COLORS + 1, n_positions=NUM_PIXELS, n_embd=16, n_head=2)
    )
    return randomize(made, seed=5).eval()


@torch.no_grad()
def exact(model, rules):
    """The probability of each image under the rules."""
    fed = torch.nn.functional.pad(IMAGES[:, :-1], (1, 0), value=NUM_COLORS)
    logits = model.double()(fed, use_cache=False).logits.flatten(0, 1)
    model.float()
    by_pixel = (filter_logits(logits, rules) / rules.temperature).softmax(dim=-1).view(*IMAGES.shape, NUM_COLORS)
    return by_pixel.gather(2, IMAGES.unsqueeze(2)).squeeze(2).prod(dim=1)


def p_value(images, probabilities):
    """The p-value of a chi-square test: excluded images must not occur, rare ones are pooled."""
    place = (images * NUM_COLORS ** torch.arange(NUM_PIXELS - 1, -1, -1)).sum(dim=1)
    counts = torch.bincount(place, minlength=len(IMAGES)).double()
    if counts[probabilities == 0].any():
        return 0.0
    expected = len(images) * probabilities
    common = expected >= 5
    counts = torch.cat([counts[common], counts[~common].sum().view(1)])
    expected = torch.cat([expected[common], expected[~common].sum().view(1)])
    if expected[-1] < 5:
        counts, expected = counts[:-1], expected[:-1]
    assert len(expected) > 10, "too few categories to test"
    return float(chi2.sf(((counts - expected) ** 2 / expected).sum(), len(expected) - 1))


def sample(model, rules, decoder):
    with fixed_draft_lengths(3):
        return Sampler(model, decoder=decoder).generate(seeds=range(NUM_SAMPLES), rules=rules)


@pytest.mark.parametrize("decoder", ["sequential", pytest.param("parallel", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_images_follow_the_exact_distribution(model, rules, decoder):
    """The seeds are fixed, so this cannot fail by chance; the p-values were 0.47 to 0.79."""
    assert p_value(sample(model, rules, decoder), exact(model, rules)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["sequential", "parallel"])
def test_the_test_detects_noise_of_the_wrong_scale(model, decoder, monkeypatch):
    monkeypatch.setattr(module, "gumbel_noise", lambda *args: 1.1 * gumbel_noise(*args))
    assert p_value(sample(model, SamplingRules(), decoder), exact(model, SamplingRules())) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["sequential", "parallel"])
def test_the_test_detects_noise_shared_by_two_pixels(model, decoder, monkeypatch):
    monkeypatch.setattr(module, "gumbel_noise", lambda seeds, pixels, num: gumbel_noise(seeds, pixels // 2, num))
    assert p_value(sample(model, SamplingRules(), decoder), exact(model, SamplingRules())) < 1e-6


@pytest.mark.slow
def test_the_test_detects_a_slightly_wrong_temperature(model):
    for nominal, actual in ((0.7, 0.8), (1.0, 1.1)):
        images = sample(model, SamplingRules(temperature=actual), "sequential")
        assert p_value(images, exact(model, SamplingRules(temperature=nominal))) < 1e-6
