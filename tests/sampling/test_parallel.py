"""Parallel decoding gives the images of sequential decoding in fewer passes, for any drafts."""

import pytest
import torch

from imagegpt import ImageGPTPipeline
from imagegpt.sampling import ExecutionPlan, Sampler, SamplingRules, parallel
from naive import RULES, fixed_draft_lengths, seeds_of


@pytest.fixture(scope="module")
def digits():
    return ImageGPTPipeline.from_pretrained("digits", device="cpu").model


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_digits_are_the_same_in_less_than_a_third_of_the_passes(digits, rules, seed):
    seeds = seeds_of(50, seed)
    with fixed_draft_lengths(16):
        images, statistics = Sampler(digits, decoder="parallel").run(seeds=seeds, rules=rules)
    assert torch.equal(images, Sampler(digits).generate(seeds=seeds, rules=rules))
    assert statistics.num_pixels == 50 * 64
    assert statistics.num_passes <= 0.3 * 50 * 64


@pytest.mark.parametrize("length", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_random_models_sample_the_same_with_any_length_and_prompt(build_model, rules, length):
    model = build_model(vocab_size=5, initializer_range=0.3)
    prompts = [torch.randint(0, 4, (given,)) for given in (0, 3, 16, 3, 15, 9)]
    with fixed_draft_lengths(length):
        images = Sampler(model, decoder="parallel").generate(prompts, seeds=seeds_of(6), rules=rules)
    assert torch.equal(images, Sampler(model).generate(prompts, seeds=seeds_of(6), rules=rules))


def test_tuned_draft_lengths_do_not_change_images(build_model):
    model = build_model(n_positions=64, vocab_size=4, initializer_range=0.3)
    expected = Sampler(model).generate(seeds=seeds_of(3))
    sampler = Sampler(model, decoder="parallel")
    for _ in range(3):
        assert torch.equal(sampler.generate(seeds=seeds_of(3)), expected)


def test_images_that_are_not_square_and_partial_images(build_model):
    model = build_model(n_positions=17, vocab_size=4, initializer_range=0.3)
    for num_pixels in (1, 2, 13, 17):
        images = Sampler(model, decoder="parallel").generate(seeds=seeds_of(4), num_pixels=num_pixels)
        assert torch.equal(images, Sampler(model).generate(seeds=seeds_of(4), num_pixels=num_pixels))


def test_perfect_drafts_are_all_accepted(build_model, monkeypatch):
    """A pass accepts the drafts that agree and one pixel more."""
    model = build_model()
    expected = Sampler(model).generate(seeds=[7])
    perfect = torch.cat([torch.tensor([[10]]), expected], dim=1)  # the token at each position
    monkeypatch.setattr(
        parallel, "draft_tokens", lambda tokens, window, num_drafted, row_length: perfect.gather(1, window)
    )
    with fixed_draft_lengths(4):
        images, statistics = Sampler(model, decoder="parallel").run(seeds=[7])
    assert torch.equal(images, expected)
    assert statistics.num_passes == 4
    assert statistics.pixels_per_pass == 4


def test_wrong_drafts_need_as_many_passes_as_sequential_decoding(build_model, monkeypatch):
    model = build_model()
    expected = Sampler(model).generate(seeds=[7])
    wrong = torch.cat([torch.tensor([[10]]), (expected + 1) % 10], dim=1)

    def drafts(tokens, window, num_drafted, row_length):
        return torch.cat([tokens.gather(1, window[:, :1]), wrong.gather(1, window[:, 1:])], dim=1)

    monkeypatch.setattr(parallel, "draft_tokens", drafts)
    with fixed_draft_lengths(4):
        images, statistics = Sampler(model, decoder="parallel").run(seeds=[7])
    assert torch.equal(images, expected)
    assert statistics.num_passes == 16


def test_drafts_far_ahead_are_reused_after_short_passes(build_model, monkeypatch):
    """A sampled draft is better than the pixel above, however old it is."""
    seen, draft_tokens = [], parallel.draft_tokens

    def drafts(tokens, window, num_drafted, row_length):
        seen.append((window[0, 0].item(), num_drafted.item()))
        return draft_tokens(tokens, window, num_drafted, row_length)

    monkeypatch.setattr(parallel, "draft_tokens", drafts)
    with fixed_draft_lengths(12, 1, 1, 1):
        Sampler(build_model(), decoder="parallel").generate(seeds=[3])
    assert seen[0] == (0, 0)
    assert [num_drafted for _, num_drafted in seen[1:4]] == [12, 12, 12]
    assert all(num_drafted >= position for position, num_drafted in seen)


def test_a_reused_row_does_not_reuse_drafts(build_model):
    session = ExecutionPlan.choose(build_model(), decoder="parallel").open_session(1)
    images = []
    for _ in range(2):
        row = session.admit(torch.empty(0, dtype=torch.int64), 5, SamplingRules())
        while session.unfinished():
            session.step()
        images.append(session.pixels(row).clone())
        session.release(row)
    assert torch.equal(*images)


def test_nan_weights_raise_an_error(tiny_model):
    with torch.no_grad():
        tiny_model.transformer.wpe.weight[9] = torch.nan
    with pytest.raises(ValueError, match="logits are not finite"):
        Sampler(tiny_model, decoder="parallel").generate(seeds=[0])
