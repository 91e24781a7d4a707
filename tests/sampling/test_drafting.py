"""Drafts: copied from above at first, then resampled with scores corrected for wrong drafts."""

import pytest
import torch

from imagegpt import ImageGPTPipeline
from imagegpt.sampling import ExecutionPlan, Sampler, drafting
from imagegpt.sampling.drafting import build_bigram_table, draft_tokens, redraft
from naive import fixed_draft_lengths


def test_initial_drafts_copy_the_nearest_drafted_pixel_above():
    tokens = torch.arange(100, 117).unsqueeze(0)  # column p holds pixel p - 1; width 4
    window = torch.arange(5, 13).unsqueeze(0)  # pixels 4 to 11 are fed at these positions
    num_drafted = torch.tensor([6])  # pixels 0 to 5 are known or drafted
    fed = draft_tokens(tokens, window, num_drafted, 4)
    #                            x4   x5   over x6, x7: x2, x3 ... x8, x9: x4, x5; x10, x11 two rows up: x2, x3
    assert fed.tolist() == [[105, 106, 103, 104, 105, 106, 103, 104]]


@pytest.fixture(params=["torch", "cpp"])
def backend(request, build_model):
    """Both implementations of `redraft`, with any model."""
    return ExecutionPlan.choose(build_model(), backend=request.param).make_backend(1, 2)


def reference_redraft(scores, fed, window, bigrams):
    """The definition, pixel by pixel in float64."""
    pixels = torch.empty_like(fed)
    for image in range(len(fed)):
        for n in range(fed.shape[1]):
            if n and window[image, n] == window[image, n - 1]:
                pixels[image, n] = pixels[image, n - 1]
                continue
            corrected = scores[image, n].double()
            if n:
                corrected = corrected + bigrams[pixels[image, n - 1]] - bigrams[fed[image, n]]
            pixels[image, n] = corrected.argmax()
    return pixels


@pytest.mark.parametrize(
    ("num_images", "num", "num_colors"), [(1, 1, 5), (2, 7, 3), (3, 16, 16), (1, 9, 37), (40, 16, 150)]
)
def test_redraft_matches_its_definition(backend, num_images, num, num_colors):
    scores, bigrams = torch.randn(num_images, num, num_colors), torch.randn(num_colors, num_colors)
    fed = torch.randint(0, num_colors, (num_images, num))
    window = (torch.arange(num) + torch.tensor([[0]] * num_images)).clamp(max=max(1, num - 3))
    pixels = redraft(backend, scores, fed, window, bigrams)
    assert torch.equal(pixels, reference_redraft(scores, fed, window, bigrams))


def test_pixels_after_right_drafts_are_exact(backend):
    scores, bigrams = torch.randn(1, 8, 20), 100 * torch.randn(20, 20)
    plain = scores.argmax(dim=-1)
    fed = torch.cat([torch.tensor([[20]]), plain[:, :-1]], dim=1)  # the start token is not in the table
    fed[0, 5] = (fed[0, 5] + 1) % 20  # a wrong draft of pixel 4
    pixels = redraft(backend, scores, fed, torch.arange(8).unsqueeze(0), bigrams)
    assert torch.equal(pixels[:, :5], plain[:, :5])
    assert not torch.equal(pixels, plain)


def test_excluded_colours_and_ties(backend):
    """Ties go to the first, as in argmax; a score of -inf never wins."""
    scores = torch.full((1, 2, 40), -torch.inf)
    scores[0, 0, [17, 33]], scores[0, 1, [9, 38]] = 1.0, 2.0
    bigrams = torch.zeros(40, 40)
    bigrams[:, 3] = 50.0
    pixels = redraft(backend, scores, torch.tensor([[40, 5]]), torch.tensor([[0, 1]]), bigrams)
    assert pixels.tolist() == [[17, 9]]


def test_without_bigrams_drafts_are_not_corrected(backend):
    scores = torch.randn(2, 5, 9)
    window = torch.arange(5).expand(2, 5)
    pixels = redraft(backend, scores, torch.zeros(2, 5, dtype=torch.int64), window, None)
    assert torch.equal(pixels, scores.argmax(dim=-1))


def bigrams(model):
    return build_bigram_table(ExecutionPlan.choose(model).make_backend(50, 2), 50, "cpu")


def test_the_bigram_table_holds_scaled_log_probabilities_of_the_second_pixel(build_model):
    model = build_model(vocab_size=120)  # computed in three batches
    table = bigrams(model)
    for color in (0, 75, 118):
        logits = model(torch.tensor([[119, color]])).logits[0, 1]
        assert torch.allclose(table[color], drafting._BIGRAM_WEIGHT * logits.log_softmax(-1), atol=1e-5)
    assert table.nbytes == drafting.bigram_table_bytes(119)


def test_no_table_for_large_palettes_or_single_pixels(build_model, monkeypatch):
    alone = build_model(n_positions=1)
    assert Sampler(alone, decoder="parallel").generate(seeds=[1]).shape == (1, 1)
    monkeypatch.setattr(drafting, "_MAX_COLORS", 8)
    assert bigrams(build_model()) is None


def test_the_bigram_table_saves_passes(monkeypatch):
    """On photographs."""
    model = ImageGPTPipeline.from_pretrained("cifar10", device="cpu").model
    passes = []
    for weight in (0.0, drafting._BIGRAM_WEIGHT):
        monkeypatch.setattr(drafting, "_BIGRAM_WEIGHT", weight)
        with fixed_draft_lengths(16):
            statistics = Sampler(model, decoder="parallel").run(seeds=[1], num_pixels=256).statistics
        passes.append(statistics.num_passes)
    assert passes[1] < 0.85 * passes[0]
