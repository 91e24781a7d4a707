import math

import pytest
import torch

from helpers import image_ids, tiny_model
from imagegpt.evaluation.likelihood import mean_nll, pixel_nll


def test_nats_of_each_pixel_equal_a_naive_loop():
    model = tiny_model(dtype=torch.float64)
    ids = image_ids(3, sos=False)
    nats = pixel_nll(model, ids, batch_size=2)
    assert nats.dtype == torch.float64
    for image, row in zip(ids.tolist(), nats.tolist(), strict=True):
        for t, pixel in enumerate(image):
            scores = model(torch.tensor([[model.config.sos_token_id, *image[:t]]])).logits[0, -1].tolist()
            expected = math.log(sum(math.exp(score) for score in scores)) - scores[pixel]
            assert row[t] == pytest.approx(expected, abs=1e-12)


def test_images_sum_to_the_models_own_loss():
    model = tiny_model(dtype=torch.float64)
    ids = image_ids(5, sos=False)
    whole = torch.cat([torch.full((5, 1), model.config.sos_token_id), ids], dim=1)
    per_image = pixel_nll(model, ids).sum(dim=1)
    for image, nats in zip(whole, per_image.tolist(), strict=True):
        assert model(image[None], labels=image[None]).loss.item() * 16 == pytest.approx(nats, abs=1e-11)
    assert mean_nll(model, ids) == pytest.approx(per_image.mean().item() / 16, abs=1e-12)


def test_probabilities_of_all_images_sum_to_one():
    """The likelihood is of whole images: over all 16 of two colours and four pixels it is a distribution."""
    model = tiny_model(dtype=torch.float64, vocab_size=3, n_positions=4)
    images = torch.cartesian_prod(*[torch.arange(2)] * 4)
    assert pixel_nll(model, images).sum(dim=1).neg().exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_the_batch_size_changes_rounding_at_most():
    model = tiny_model()
    ids = image_ids(7, sos=False)
    whole = pixel_nll(model, ids)
    assert whole.shape == (7, 16)
    for batch_size in (1, 3, 7):
        torch.testing.assert_close(pixel_nll(model, ids, batch_size=batch_size), whole, rtol=1e-5, atol=1e-5)


def test_dropout_is_off_and_the_mode_is_left_alone():
    model = tiny_model(resid_pdrop=0.5, embd_pdrop=0.5)
    ids = image_ids(2, sos=False)
    expected = pixel_nll(model, ids)
    model.train()
    assert pixel_nll(model, ids).equal(expected)
    assert model.training
    model.eval()
    pixel_nll(model, ids)
    assert not model.training


def test_the_mode_is_left_alone_after_an_error(monkeypatch):
    model = tiny_model().train()
    monkeypatch.setattr(type(model), "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pixel_nll(model, image_ids(1, sos=False))
    assert model.training


def test_half_precision_gives_float32_nats():
    model = tiny_model(dtype=torch.bfloat16)
    nats = pixel_nll(model, image_ids(4, sos=False))
    assert nats.dtype == torch.float32
    assert not nats.equal(nats.bfloat16().float())  # they were not rounded to bfloat16 on the way
    torch.testing.assert_close(nats, pixel_nll(tiny_model(), image_ids(4, sos=False)), rtol=0, atol=0.3)


def test_the_result_is_an_ordinary_tensor():
    nats = pixel_nll(tiny_model(), image_ids(1, sos=False))
    assert not nats.is_inference()
    assert not nats.requires_grad


def test_a_bidirectional_model_is_refused():
    with pytest.raises(ValueError, match="bidirectional"):
        pixel_nll(tiny_model(is_causal=False), image_ids(1, sos=False))


@pytest.mark.parametrize("shape", [(2, 15), (2, 17), (16,), (0, 16), (2, 4, 4)])
def test_anything_but_whole_images_is_refused(shape):
    with pytest.raises(ValueError, match=r"the ids have the shape \(.*\): this model scores whole images, .*, 16\)"):
        pixel_nll(tiny_model(), torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("wrong", [-1, 16])
def test_ids_that_are_no_colours_are_refused(wrong):
    ids = image_ids(2, sos=False)
    ids[1, 3] = wrong
    with pytest.raises(ValueError, match=rf"the ids contain {wrong}: this model's colours are 0 to 15"):
        pixel_nll(tiny_model(), ids)


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="batch_size is 0: it must be an integer from 1"):
        pixel_nll(tiny_model(), image_ids(1, sos=False), batch_size=0)
