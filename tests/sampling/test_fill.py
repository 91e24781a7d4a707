"""Filling: hidden pixels are sampled, known ones do not change, and the schedule is followed."""

import math

import pytest
import torch

from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling
from imagegpt.sampling import FillSchedule, SamplingRules, fill
from imagegpt.sampling.fill import _plan_passes


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(0)
    config = ImageGPTConfig(
        vocab_size=7, n_positions=16, n_embd=16, n_layer=2, n_head=2, is_causal=False, initializer_range=0.6
    )
    return ImageGPTForCausalImageModeling(config).eval()


@pytest.fixture
def images():
    return torch.randint(6, (5, 16), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def hidden():
    return torch.rand(5, 16, generator=torch.Generator().manual_seed(2)) < 0.6


SEEDS = [3, 4, 5, 6, 7]


def test_known_pixels_stay_and_hidden_ones_are_colours(bert, images, hidden):
    filled = fill(bert, images, hidden, seeds=SEEDS)
    assert filled[~hidden].equal(images[~hidden])
    assert 0 <= filled.min() <= filled.max() < 6
    assert not filled.equal(images)


def test_the_values_of_hidden_pixels_are_ignored(bert, images, hidden):
    garbage = torch.where(hidden, torch.full_like(images, 10**9), images)
    assert fill(bert, garbage, hidden, seeds=SEEDS).equal(fill(bert, images, hidden, seeds=SEEDS))


def test_an_image_does_not_depend_on_its_batch(bert, images, hidden):
    together = fill(bert, images, hidden, seeds=SEEDS)
    for index in (0, 3):
        one = slice(index, index + 1)
        assert fill(bert, images[one], hidden[one], seeds=SEEDS[one]).equal(together[one])
    assert not fill(bert, images, hidden, seeds=[8, 9, 10, 11, 12]).equal(together)


def test_without_hidden_pixels_nothing_changes(bert, images):
    assert fill(bert, images, torch.zeros_like(images, dtype=torch.bool), seeds=SEEDS).equal(images)


def test_one_pass_samples_from_the_models_distribution(bert, images):
    """A single hidden pixel and many seeds: the colour frequencies match the model's probabilities."""
    num = 4000
    hidden = torch.zeros(1, 16, dtype=torch.bool)
    hidden[0, 5] = True
    with torch.no_grad():
        embeddings = bert.transformer.wte(images[:1]).masked_fill(hidden.unsqueeze(-1), 0)
        expected = bert(inputs_embeds=embeddings).logits[0, 5].softmax(0)
    target = fill(
        bert, images[:1].expand(num, -1), hidden.expand(num, -1), seeds=list(range(num)),
        schedule=FillSchedule(passes=1, refills=0),
    )  # fmt: skip
    counts = torch.bincount(target[:, 5], minlength=6)
    chi_square = ((counts - num * expected) ** 2 / (num * expected)).sum()
    assert chi_square < 25.7  # 5 degrees of freedom, one in 10,000


def test_greedy_filling_takes_the_most_likely_colours(bert, images, hidden):
    once = FillSchedule(passes=1, refills=0)
    filled = fill(bert, images, hidden, seeds=SEEDS, rules=SamplingRules(temperature=0), schedule=once)
    with torch.no_grad():
        embeddings = bert.transformer.wte(images).masked_fill(hidden.unsqueeze(-1), 0)
        best = bert(inputs_embeds=embeddings).logits.argmax(-1)
    assert filled.equal(torch.where(hidden, best, images))


@pytest.mark.parametrize("passes", [1, 3, 16, 40])
@pytest.mark.parametrize("refills", [0, 4])
def test_each_pass_follows_the_schedule(hidden, passes, refills):
    schedule = FillSchedule(passes=passes, refills=refills, refill_fraction=0.3)
    passes_planned = list(_plan_passes(hidden, SEEDS, schedule))
    assert len(passes_planned) == passes + refills
    known = ~hidden
    sizes = []
    for unknown, target in passes_planned[:passes]:
        assert unknown.equal(~known)
        assert not (target & known).any()
        known = known | target
        sizes.append(int(target.sum()))
    assert known.all()
    if passes == 3:  # of each n: n - ceil(n cos(30 degrees)), n - ceil(n cos(60 degrees)), all
        counts = hidden.sum(dim=1).tolist()
        after = [sum(n - math.ceil(n * math.cos(math.radians(angle))) for n in counts) for angle in (30, 60)]
        assert sizes == [after[0], after[1] - after[0], sum(counts) - after[1]]
    for unknown, target in passes_planned[passes:]:
        assert unknown.equal(target)
        assert not (target & ~hidden).any()
        assert target.sum(dim=1).tolist() == [math.ceil(0.3 * n) for n in hidden.sum(dim=1).tolist()]
    if refills:
        assert not passes_planned[-1][1].equal(passes_planned[-2][1])


def test_progress_is_reported(bert, images, hidden):
    reports = []
    fill(
        bert,
        images,
        hidden,
        seeds=SEEDS,
        schedule=FillSchedule(passes=2, refills=1),
        progress=lambda *pair: reports.append(pair),
    )
    assert reports == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"passes": 0}, "passes is 0"),
        ({"refills": -1}, "refills is -1"),
        ({"refill_fraction": 0.0}, "refill_fraction is 0.0"),
        ({"refill_fraction": 1.5}, "refill_fraction is 1.5"),
    ],
)
def test_out_of_range_schedules_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        FillSchedule(**fields)


def test_invalid_inputs_are_refused(bert, images, hidden):
    causal = ImageGPTForCausalImageModeling(
        ImageGPTConfig(vocab_size=7, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    )
    with pytest.raises(ValueError, match="this model is causal"):
        fill(causal, images, hidden, seeds=SEEDS)
    with pytest.raises(ValueError, match="and the mask boolean"):
        fill(bert, images, hidden.long(), seeds=SEEDS)
    with pytest.raises(ValueError, match="and the mask boolean"):
        fill(bert, images[:, :9], hidden[:, :9], seeds=SEEDS)
    with pytest.raises(ValueError, match="4 seeds for 5 images"):
        fill(bert, images, hidden, seeds=SEEDS[:4])
    with pytest.raises(ValueError, match="must lie in 0 to 5"):
        fill(bert, images + 6, hidden, seeds=SEEDS)
