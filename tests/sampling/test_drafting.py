"""Drafts of pixels: from above at first, then drawn again as if the drafts before had been right."""

import pytest
import torch

from imagegpt import ImageGPTPipeline
from imagegpt.sampling import ExecutionPlan, Sampler, drafting
from imagegpt.sampling.drafting import first_drafts, influence_of, redrawn
from naive import drafts_of


def test_first_drafts_are_the_nearest_pixel_above_that_was_drawn():
    tokens = torch.arange(100, 117).unsqueeze(0)  # column p holds pixel p - 1; width 4
    window = torch.arange(5, 13).unsqueeze(0)  # pixels 4 to 11 are fed at these positions
    drafted = torch.tensor([6])  # pixels 0 to 5 were drawn, right or wrong
    fed = first_drafts(tokens, window, drafted, 4)
    #                            x4   x5   over x6, x7: x2, x3 ... x8, x9: x4, x5; x10, x11 two rows up: x2, x3
    assert fed.tolist() == [[105, 106, 103, 104, 105, 106, 103, 104]]


@pytest.fixture(params=["torch", "cpp"])
def backend(request, build_model):
    """Both ways to draw again; which model they have does not matter."""
    return ExecutionPlan.choose(build_model(), backend=request.param).open_backend(1, 2)


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
def test_what_is_drawn_again(backend, num_images, num, num_colors):
    scores, influence = torch.randn(num_images, num, num_colors), torch.randn(num_colors, num_colors)
    fed = torch.randint(0, num_colors, (num_images, num))
    window = (torch.arange(num) + torch.tensor([[0]] * num_images)).clamp(max=max(1, num - 3))
    drawn = redrawn(backend, scores, fed, window, influence)
    assert torch.equal(drawn, one_by_one(scores, fed, window, influence))


def test_pixels_behind_right_drafts_are_what_the_model_draws(backend):
    scores, influence = torch.randn(1, 8, 20), 100 * torch.randn(20, 20)
    plain = scores.argmax(dim=-1)
    fed = torch.cat([torch.tensor([[20]]), plain[:, :-1]], dim=1)  # the start token, of which the table knows nothing
    fed[0, 5] = (fed[0, 5] + 1) % 20  # wrong: stands behind pixel 4
    drawn = redrawn(backend, scores, fed, torch.arange(8).unsqueeze(0), influence)
    assert torch.equal(drawn[:, :5], plain[:, :5])
    assert not torch.equal(drawn, plain)


def test_colours_that_are_excluded_and_equal_ones(backend):
    """Of equals the first, as argmax has it; never one whose score is -inf."""
    scores = torch.full((1, 2, 40), -torch.inf)
    scores[0, 0, [17, 33]], scores[0, 1, [9, 38]] = 1.0, 2.0
    influence = torch.zeros(40, 40)
    influence[:, 3] = 50.0
    drawn = redrawn(backend, scores, torch.tensor([[40, 5]]), torch.tensor([[0, 1]]), influence)
    assert drawn.tolist() == [[17, 9]]


def test_without_influence_every_pixel_is_drawn_as_if_drafts_were_right(backend):
    scores = torch.randn(2, 5, 9)
    window = torch.arange(5).expand(2, 5)
    drawn = redrawn(backend, scores, torch.zeros(2, 5, dtype=torch.int64), window, None)
    assert torch.equal(drawn, scores.argmax(dim=-1))


def influence(model):
    return influence_of(ExecutionPlan.choose(model).open_backend(50, 2), 50, "cpu")


def test_influence_is_what_the_model_says_of_the_second_pixel(build_model):
    model = build_model(vocab_size=120)  # read in three parts
    table = influence(model)
    for color in (0, 75, 118):
        logits = model(torch.tensor([[119, color]])).logits[0, 1]
        assert torch.allclose(table[color], drafting._SHARE * logits.log_softmax(-1), atol=1e-5)
    assert table.nbytes == drafting.influence_bytes(119)


def test_no_table_where_it_would_be_too_large_or_nothing_comes_next(build_model, monkeypatch):
    alone = build_model(n_positions=1)
    assert Sampler(alone, decoder="parallel").generate(seeds=[1]).shape == (1, 1)
    monkeypatch.setattr(drafting, "_MOST_COLORS", 8)
    assert influence(build_model()) is None


def test_better_drafts_save_passes(monkeypatch):
    """What the table is for, on photographs."""
    model = ImageGPTPipeline.from_pretrained("cifar10", device="cpu").model
    passes = []
    for share in (0.0, drafting._SHARE):
        monkeypatch.setattr(drafting, "_SHARE", share)
        with drafts_of(16):
            statistics = Sampler(model, decoder="parallel").run(seeds=[1], num_pixels=256).statistics
        passes.append(statistics.num_passes)
    assert passes[1] < 0.85 * passes[0]
