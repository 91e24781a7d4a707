"""Parallel decoding gives the image that drawing pixel after pixel gives, in fewer passes, however it drafts."""

import pytest
import torch

from imagegpt import ImageGPTPipeline
from imagegpt.sampling import ExecutionPlan, Sampler, SamplingRules, parallel
from naive import RULES, drafts_of, seeds_of


@pytest.fixture(scope="module")
def digits():
    return ImageGPTPipeline.from_pretrained("digits", device="cpu").model


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_digits_are_the_same_and_need_less_than_a_third_of_the_passes(digits, rules, seed):
    seeds = seeds_of(50, seed)
    with drafts_of(16):
        images, statistics = Sampler(digits, decoder="parallel").run(seeds=seeds, rules=rules)
    assert torch.equal(images, Sampler(digits).generate(seeds=seeds, rules=rules))
    assert statistics.num_pixels == 50 * 64
    assert statistics.num_passes <= 0.3 * 50 * 64


@pytest.mark.parametrize("length", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_random_models_draw_the_same_with_any_run_and_prompt(build_model, rules, length):
    model = build_model(vocab_size=5, initializer_range=0.3)
    prompts = [torch.randint(0, 4, (given,)) for given in (0, 3, 16, 3, 15, 9)]
    with drafts_of(length):
        images = Sampler(model, decoder="parallel").generate(prompts, seeds=seeds_of(6), rules=rules)
    assert torch.equal(images, Sampler(model).generate(prompts, seeds=seeds_of(6), rules=rules))


def test_the_length_chosen_by_the_clock_changes_nothing(build_model):
    model = build_model(n_positions=64, vocab_size=4, initializer_range=0.3)
    expected = Sampler(model).generate(seeds=seeds_of(3))
    sampler = Sampler(model, decoder="parallel")
    for _ in range(3):
        assert torch.equal(sampler.generate(seeds=seeds_of(3)), expected)


def test_images_that_are_no_squares_and_parts_of_images(build_model):
    model = build_model(n_positions=17, vocab_size=4, initializer_range=0.3)
    for num_pixels in (1, 2, 13, 17):
        images = Sampler(model, decoder="parallel").generate(seeds=seeds_of(4), num_pixels=num_pixels)
        assert torch.equal(images, Sampler(model).generate(seeds=seeds_of(4), num_pixels=num_pixels))


def test_a_perfect_drafter_needs_one_pass_per_run(build_model, monkeypatch):
    """What counts as accepted: the run that agrees, and one pixel more."""
    model = build_model()
    expected = Sampler(model).generate(seeds=[7])
    told = torch.cat([torch.tensor([[10]]), expected], dim=1)  # what stands at each position
    monkeypatch.setattr(parallel, "first_drafts", lambda tokens, window, drafted, row_length: told.gather(1, window))
    with drafts_of(4):
        images, statistics = Sampler(model, decoder="parallel").run(seeds=[7])
    assert torch.equal(images, expected)
    assert statistics.num_passes == 4
    assert statistics.pixels_per_pass == 4


def test_a_hopeless_drafter_is_as_good_as_drawing_one_by_one(build_model, monkeypatch):
    model = build_model()
    expected = Sampler(model).generate(seeds=[7])
    wrong = torch.cat([torch.tensor([[10]]), (expected + 1) % 10], dim=1)

    def drafts(tokens, window, drafted, row_length):
        return torch.cat([tokens.gather(1, window[:, :1]), wrong.gather(1, window[:, 1:])], dim=1)

    monkeypatch.setattr(parallel, "first_drafts", drafts)
    with drafts_of(4):
        images, statistics = Sampler(model, decoder="parallel").run(seeds=[7])
    assert torch.equal(images, expected)
    assert statistics.num_passes == 16


def test_what_was_drafted_far_ahead_is_remembered_after_a_short_run(build_model, monkeypatch):
    """A draft that was drawn is better than the pixel above, however long ago it was drawn."""
    seen, first_drafts = [], parallel.first_drafts

    def drafts(tokens, window, drafted, row_length):
        seen.append((window[0, 0].item(), drafted.item()))
        return first_drafts(tokens, window, drafted, row_length)

    monkeypatch.setattr(parallel, "first_drafts", drafts)
    with drafts_of(12, 1, 1, 1):
        Sampler(build_model(), decoder="parallel").generate(seeds=[3])
    assert seen[0] == (0, 0)
    assert [drafted for _, drafted in seen[1:4]] == [12, 12, 12]
    assert all(drafted >= position for position, drafted in seen)


def test_a_row_that_is_admitted_where_another_was_knows_nothing_of_its_drafts(build_model):
    session = ExecutionPlan.choose(build_model(), decoder="parallel").open(1)
    images = []
    for _ in range(2):
        row = session.admit(torch.empty(0, dtype=torch.int64), 5, SamplingRules())
        while session.unfinished():
            session.step()
        images.append(session.pixels(row).clone())
        session.release(row)
    assert torch.equal(*images)


def test_broken_weights_are_reported(tiny_model):
    with torch.no_grad():
        tiny_model.transformer.wpe.weight[9] = torch.nan
    with pytest.raises(ValueError, match="logits are not finite"):
        Sampler(tiny_model, decoder="parallel").generate(seeds=[0])
