"""What a batch of images holds between passes, and that beginning new images forgets the old ones."""

import pytest
import torch

from imagegpt.sampling import SamplingRules
from imagegpt.sampling import batch as module
from imagegpt.sampling.batch import Batch, LogitsNotFiniteError
from imagegpt.sampling.rules import draw, gumbel_noise, seed_tensor

RULES = SamplingRules(temperature=0.8, top_k=4)


def batch_of(prompts, seeds, rules=RULES, num_pixels=4):
    batch = Batch(len(prompts), num_pixels, 5, rules, torch.device("cpu"))
    batch.start([torch.tensor(prompt, dtype=torch.int64) for prompt in prompts], seeds)
    return batch


def test_tokens_are_the_start_token_and_the_prompts():
    batch = batch_of([[], [3, 1], [4, 4, 4, 2]], [1, 2, 3])
    assert batch.tokens.t().tolist() == [[5, 0, 0, 0, 0], [5, 3, 1, 0, 0], [5, 4, 4, 4, 2]]
    assert batch.starts == batch.position.tolist() == batch.guessed.tolist() == [0, 2, 4]


@pytest.mark.parametrize("chunk", [1, 40, 1 << 18])
def test_pixels_are_drawn_with_their_own_noise_and_put_behind_their_positions(chunk, monkeypatch):
    """Noise of image and pixel, however much of it is computed at once."""
    monkeypatch.setattr(module, "_NOISE_CHUNK", chunk)
    seeds, positions = [7, 2**63 + 5], torch.tensor([[0, 1], [2, 3]])
    batch = batch_of([[], [3, 1]], seeds)
    logits = torch.randn(2, 2, 5)
    drawn = batch.draw(logits, positions)
    noise = gumbel_noise(seed_tensor(seeds), torch.arange(4), 5)
    for image in range(2):
        expected = draw(logits[image], noise[image, positions[image]], RULES)
        assert torch.equal(drawn[image], expected)
        assert torch.equal(batch.tokens[positions[image] + 1, image], expected)


def test_what_is_given_is_never_drawn():
    """A prompt that was a whole image once lost its last pixel when the others of its batch were drawn."""
    batch = batch_of([[4, 4, 4, 2], [4]], [1, 2])
    logits = torch.zeros(2, 1, 5)
    logits[:, :, 0] = 100
    assert batch.draw(logits, torch.tensor([[3], [1]])).tolist() == [[2], [0]]
    assert batch.tokens.t().tolist() == [[5, 4, 4, 4, 2], [5, 4, 0, 0, 0]]


def test_new_images_in_the_same_place_know_nothing_of_the_old_ones():
    """On a GPU the place is used again and again, because recorded graphs refer to it."""
    batch = batch_of([[4, 4, 4, 2], [4]], [1, 2])
    batch.draw(torch.full((2, 1, 5), torch.inf), torch.tensor([[3], [1]]))
    batch.position += 1
    batch.guessed += 3
    with pytest.raises(LogitsNotFiniteError):
        batch.check_finite()
    places = [tensor.data_ptr() for tensor in (batch.tokens, batch.position, batch.guessed, batch.logits_sum)]
    batch.start([torch.tensor([1]), torch.tensor([2, 2])], [8, 9])
    fresh = batch_of([[1], [2, 2]], [8, 9])
    batch.check_finite()
    assert places == [tensor.data_ptr() for tensor in (batch.tokens, batch.position, batch.guessed, batch.logits_sum)]
    assert batch.starts == fresh.starts
    for old, new in ((batch.tokens, fresh.tokens), (batch.position, fresh.position), (batch.guessed, fresh.guessed)):
        assert torch.equal(old, new)
    logits, positions = torch.randn(2, 3, 5), torch.tensor([[1, 2, 3], [1, 2, 3]])
    assert torch.equal(batch.draw(logits, positions), fresh.draw(logits, positions))


def test_greedy_rules_need_no_seeds_noise():
    batch = batch_of([[]], [1], SamplingRules(temperature=0))
    logits = torch.tensor([[[0.0, 3.0, 1.0, 3.0, 2.0]]])
    assert batch.draw(logits, torch.tensor([[0]])).tolist() == [[1]]
