"""Guesses of pixels: from above at first, then drawn again as if the guesses before had been right."""

import pytest
import torch

from imagegpt import ImageGPTPipeline
from imagegpt.kernels.building import load
from imagegpt.sampling import Sampler, guessing
from imagegpt.sampling.guessing import first_guesses, influence_of, redrawn
from naive import OneForAll, Runs


def test_first_guesses_are_the_nearest_pixel_above_that_was_drawn():
    tokens = torch.arange(100, 117).unsqueeze(1)  # row p holds pixel p - 1; width 4
    window = torch.arange(5, 13).unsqueeze(0)  # pixels 4 to 11 are fed at these positions
    guessed = torch.tensor([6])  # pixels 0 to 5 were drawn, right or wrong
    fed = first_guesses(tokens, window, guessed, 4)
    #                            x4   x5   over x6, x7: x2, x3 ... x8, x9: x4, x5; x10, x11 two rows up: x2, x3
    assert fed.tolist() == [[105, 106, 103, 104, 105, 106, 103, 104]]


@pytest.fixture(params=["torch", "kernel"])
def with_kernels(request, shared_caches):
    if request.param == "kernel":
        assert load("decoding", shared_caches / "kernels", build=True)
    return request.param == "kernel"


def one_by_one(scores, fed, window, influence):
    """The definition, in float64."""
    drawn = torch.empty_like(fed)
    for image in range(len(fed)):
        for n in range(fed.shape[1]):
            if n and window[image, n] == window[image, n - 1]:
                drawn[image, n] = drawn[image, n - 1]
                continue
            shifted = scores[image, n].double()
            if n:
                shifted = shifted + influence[drawn[image, n - 1]] - influence[fed[image, n]]
            drawn[image, n] = shifted.argmax()
    return drawn


@pytest.mark.parametrize(
    ("num_images", "num", "num_colors"), [(1, 1, 5), (2, 7, 3), (3, 16, 16), (1, 9, 37), (40, 16, 150)]
)
def test_what_is_drawn_again(with_kernels, num_images, num, num_colors):
    scores, influence = torch.randn(num_images, num, num_colors), torch.randn(num_colors, num_colors)
    fed = torch.randint(0, num_colors, (num_images, num))
    window = (torch.arange(num) + torch.tensor([[0]] * num_images)).clamp(max=max(1, num - 3))
    drawn = redrawn(scores, fed, window, influence, with_kernels=with_kernels)
    assert torch.equal(drawn, one_by_one(scores, fed, window, influence))


def test_pixels_behind_right_guesses_are_what_the_model_draws(with_kernels):
    scores, influence = torch.randn(1, 8, 20), 100 * torch.randn(20, 20)
    plain = scores.argmax(dim=-1)
    fed = torch.cat([torch.tensor([[20]]), plain[:, :-1]], dim=1)  # the start token, of which the table knows nothing
    fed[0, 5] = (fed[0, 5] + 1) % 20  # wrong: stands behind pixel 4
    drawn = redrawn(scores, fed, torch.arange(8).unsqueeze(0), influence, with_kernels=with_kernels)
    assert torch.equal(drawn[:, :5], plain[:, :5])
    assert not torch.equal(drawn, plain)


def test_colours_that_are_excluded_and_equal_ones(with_kernels):
    """Of equals the first, as argmax has it; never one whose score is -inf."""
    scores = torch.full((1, 2, 40), -torch.inf)
    scores[0, 0, [17, 33]], scores[0, 1, [9, 38]] = 1.0, 2.0
    influence = torch.zeros(40, 40)
    influence[:, 3] = 50.0
    drawn = redrawn(scores, torch.tensor([[40, 5]]), torch.tensor([[0, 1]]), influence, with_kernels=with_kernels)
    assert drawn.tolist() == [[17, 9]]


def test_without_influence_every_pixel_is_drawn_as_if_guesses_were_right():
    scores = torch.randn(2, 5, 9)
    window = torch.arange(5).expand(2, 5)
    drawn = redrawn(scores, torch.zeros(2, 5, dtype=torch.int64), window, None, with_kernels=False)
    assert torch.equal(drawn, scores.argmax(dim=-1))


def test_influence_is_what_the_model_says_of_the_second_pixel(build_model):
    model = build_model(vocab_size=200)  # read in two parts
    with torch.no_grad():
        table = influence_of(model)
        for color in (0, 130, 198):
            logits = model(torch.tensor([[199, color]])).logits[0, 1]
            assert torch.allclose(table[color], guessing._SHARE * logits.log_softmax(-1), atol=1e-5)
    assert table.nbytes == guessing.influence_bytes(199)


def test_no_table_where_it_would_be_too_large_or_nothing_comes_next(build_model, monkeypatch):
    assert influence_of(build_model(n_positions=1)) is None
    monkeypatch.setattr(guessing, "_MOST_COLORS", 8)
    assert influence_of(build_model()) is None


def test_better_guesses_save_passes(monkeypatch):
    """What the table is for, on photographs."""
    model = ImageGPTPipeline.from_pretrained("cifar10", device="cpu").model
    passes = []
    for share in (0.0, guessing._SHARE):
        monkeypatch.setattr(guessing, "_SHARE", share)
        sampler = Sampler(model, decoder="parallel")
        sampler._run_lengths = OneForAll(Runs(16))
        sampler.generate(seeds=[1], num_pixels=256)
        passes.append(sampler.statistics.num_passes)
    assert passes[1] < 0.85 * passes[0]
