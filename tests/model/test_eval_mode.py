"""Training and evaluation mode: what puts a model into evaluation mode leaves every module in its own."""

import pytest
import torch

from helpers import image_ids, tiny_model
from imagegpt.evaluation.likelihood import pixel_nll
from imagegpt.model import eval_mode as model_modes
from imagegpt.sampling.fill import fill
from imagegpt.sampling.rules import SamplingRules


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


def partly_training(**options):
    """In training mode, but for a block that is to be left alone; dropout would change everything."""
    model = tiny_model(resid_pdrop=0.5, embd_pdrop=0.5, **options).train()
    model.transformer.h[0].eval()
    return model


def test_scoring_leaves_each_module_in_its_mode():
    model, ids = partly_training(), image_ids(sos=False)
    before = modes(model)
    scores = pixel_nll(model, ids)
    assert modes(model) == before
    assert torch.equal(scores, pixel_nll(model.eval(), ids))


def test_filling_is_without_dropout_and_leaves_each_module_in_its_mode():
    model, ids = partly_training(is_causal=False), image_ids(sos=False)
    before, hidden = modes(model), torch.ones(2, 16, dtype=torch.bool)
    greedy = SamplingRules(temperature=0)
    filled = fill(model, ids, hidden, seeds=[1, 2], rules=greedy)
    assert modes(model) == before
    assert torch.equal(filled, fill(model.eval(), ids, hidden, seeds=[1, 2], rules=greedy))


def test_a_model_that_fails_is_put_back_as_well():
    model = partly_training()
    before = modes(model)
    seen = {}

    def fails():
        with model_modes.evaluating(model):
            seen.update(modes(model))
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert not any(seen.values())
    assert modes(model) == before
