"""Parallel decoding gives the image that drawing pixel after pixel gives, in fewer passes, however it guesses."""

from types import SimpleNamespace

import pytest
import torch

from imagegpt import ImageGPTPipeline
from imagegpt.sampling import Sampler, SamplingRules
from imagegpt.sampling import parallel as module
from imagegpt.sampling.batch import Batch
from imagegpt.sampling.run_length import RunLength
from naive import RULES, OneForAll, seeds_of


@pytest.fixture(scope="module")
def digits():
    return ImageGPTPipeline.from_pretrained("digits", device="cpu").model


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_digits_are_the_same_and_need_less_than_a_third_of_the_passes(digits, rules, seed):
    seeds = seeds_of(50, seed)
    sampler = Sampler(digits, decoder="parallel")
    sampler._run_lengths = OneForAll(Always(16, 64))
    images = sampler.generate(seeds=seeds, rules=rules)
    assert torch.equal(images, Sampler(digits).generate(seeds=seeds, rules=rules))
    assert sampler.statistics.num_pixels == 50 * 64
    assert sampler.statistics.num_passes <= 0.3 * 50 * 64


@pytest.mark.parametrize("length", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_random_models_draw_the_same_with_any_run_and_prompt(build_model, rules, length):
    model = build_model(vocab_size=5, initializer_range=0.3)
    prompts = [torch.randint(0, 4, (given,)) for given in (0, 3, 16, 3, 15, 9)]
    sampler = Sampler(model, decoder="parallel")
    sampler._run_lengths = OneForAll(Always(length, 16))
    images = sampler.generate(prompts, seeds=seeds_of(6), rules=rules)
    assert torch.equal(images, Sampler(model).generate(prompts, seeds=seeds_of(6), rules=rules))


def test_the_run_length_chosen_by_the_clock_changes_nothing(build_model):
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


def test_a_perfect_guesser_needs_one_pass_per_run(build_model, monkeypatch):
    """What counts as accepted: the run that agrees, and one pixel more."""
    model = build_model()
    expected = Sampler(model).generate(seeds=[7])
    told = torch.cat([torch.tensor([[10]]), expected], dim=1)  # what stands at each position
    monkeypatch.setattr(module, "first_guesses", lambda tokens, window, guessed, row_length: told.gather(1, window))
    sampler = Sampler(model, decoder="parallel")
    sampler._run_lengths = OneForAll(Always(4, 16))
    assert torch.equal(sampler.generate(seeds=[7]), expected)
    assert sampler.statistics.num_passes == 4
    assert sampler.statistics.pixels_per_pass == 4


def test_a_hopeless_guesser_is_as_good_as_drawing_one_by_one(build_model, monkeypatch):
    model = build_model()
    expected = Sampler(model).generate(seeds=[7])
    wrong = torch.cat([torch.tensor([[10]]), (expected + 1) % 10], dim=1)

    def guesses(tokens, window, guessed, row_length):
        known = tokens.gather(0, window[:, :1].t()).t()
        return torch.cat([known, wrong.gather(1, window[:, 1:])], dim=1)

    monkeypatch.setattr(module, "first_guesses", guesses)
    sampler = Sampler(model, decoder="parallel")
    sampler._run_lengths = OneForAll(Always(4, 16))
    assert torch.equal(sampler.generate(seeds=[7]), expected)
    assert sampler.statistics.num_passes == 16


def test_what_was_guessed_far_ahead_is_remembered_after_a_short_run():
    """A guess that was drawn is better than the pixel above, however long ago it was drawn."""
    batch = Batch(1, 40, 4, SamplingRules(temperature=0), torch.device("cpu"))
    batch.start([torch.empty(0, dtype=torch.int64)], [1])
    decoder = SimpleNamespace(feed=lambda fed, window, length: torch.randn(*window.shape, 4), with_kernels=False)
    module._draw_run(decoder, batch, 16, 64, 8, None)
    assert batch.guessed.tolist() == [16]
    module._draw_run(decoder, batch, 1, 64, 8, None)
    assert batch.guessed.tolist() == [16]


def test_broken_weights_are_reported(tiny_model):
    with torch.no_grad():
        tiny_model.transformer.wpe.weight[9] = torch.nan
    with pytest.raises(ValueError, match="logits are not finite"):
        Sampler(tiny_model, decoder="parallel").generate(seeds=[0])


class Always(RunLength):
    """A run length that does not look at the clock."""

    def __init__(self, length, most):
        super().__init__(most)
        self._length = length

    def choose(self):
        return self._length

    def observe(self, length, accepted, seconds):
        pass
