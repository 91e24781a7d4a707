import math

import pytest
import torch

from helpers import image_ids, tiny_config, tiny_model
from imagegpt import ImageGPTForCausalImageModeling
from imagegpt.training.objectives import autoregressive_loss, with_start_token


def naive_nll(model, ids):
    """Mean nats per pixel, one image and one pixel at a time, from a softmax written out."""
    nats = []
    for image in ids.tolist():
        for t, pixel in enumerate(image):
            seen = torch.tensor([[model.config.sos_token_id, *image[:t]]])
            scores = model(seen).logits[0, -1].tolist()
            nats.append(math.log(sum(math.exp(score) for score in scores)) - scores[pixel])
    return sum(nats) / len(nats)


def test_start_token_comes_first_and_the_last_pixel_is_not_fed():
    ids = torch.tensor([[3, 1, 2], [0, 0, 5]])
    assert with_start_token(ids, 16).tolist() == [[16, 3, 1], [16, 0, 0]]
    assert ids.tolist() == [[3, 1, 2], [0, 0, 5]]


def test_loss_equals_a_naive_loop_over_pixels():
    model = tiny_model(dtype=torch.float64)
    ids = image_ids(3, sos=False)
    assert autoregressive_loss(model, ids).item() == pytest.approx(naive_nll(model, ids), abs=1e-12)


def test_loss_equals_the_models_own():
    model = tiny_model(dtype=torch.float64)
    ids = image_ids(3, sos=False)
    whole = torch.cat([torch.full((3, 1), model.config.sos_token_id), ids], dim=1)
    assert autoregressive_loss(model, ids).item() == pytest.approx(model(whole, labels=whole).loss.item(), abs=1e-12)


def test_a_fresh_openai_model_knows_nothing():
    model = ImageGPTForCausalImageModeling(tiny_config(init_scheme="openai"))
    assert autoregressive_loss(model, image_ids(2, sos=False)).item() == pytest.approx(math.log(16), abs=1e-6)


def test_every_pixel_has_a_gradient():
    """The first pixel's comes through the start token, the last one's through the position before it."""
    model = tiny_model()
    autoregressive_loss(model, image_ids(2, sos=False)).backward()
    assert (model.transformer.wpe.weight.grad.abs().sum(dim=1) > 0).all()
    assert model.transformer.wte.weight.grad[-1].abs().sum() > 0


def test_half_precision_logits_are_summed_in_float32():
    model = tiny_model(dtype=torch.bfloat16)
    assert autoregressive_loss(model, image_ids(2, sos=False)).dtype == torch.float32


def test_a_bidirectional_model_is_refused():
    with pytest.raises(ValueError, match="bidirectional"):
        autoregressive_loss(tiny_model(is_causal=False), image_ids(2, sos=False))
