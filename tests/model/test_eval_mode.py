"""`eval_mode` and its callers restore the mode of every module."""

import pytest
import torch

from helpers import image_ids, tiny_model
from imagegpt.evaluation.likelihood import pixel_nll
from imagegpt.model.eval_mode import eval_mode
from imagegpt.sampling.fill import fill
from imagegpt.sampling.rules import SamplingRules


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


def partly_training(**options):
    """A model in training mode with one block in evaluation mode; dropout would change every result."""
    model = tiny_model(resid_pdrop=0.5, embd_pdrop=0.5, **options).train()
    model.transformer.h[0].eval()
    return model


def test_scoring_restores_module_modes():
    model, ids = partly_training(), image_ids(sos=False)
    before = modes(model)
    scores = pixel_nll(model, ids)
    assert modes(model) == before
    assert torch.equal(scores, pixel_nll(model.eval(), ids))


def test_filling_disables_dropout_and_restores_modes():
    model, ids = partly_training(is_causal=False), image_ids(sos=False)
    before, hidden = modes(model), torch.ones(2, 16, dtype=torch.bool)
    greedy = SamplingRules(temperature=0)
    filled = fill(model, ids, hidden, seeds=[1, 2], rules=greedy)
    assert modes(model) == before
    assert torch.equal(filled, fill(model.eval(), ids, hidden, seeds=[1, 2], rules=greedy))


def test_modes_are_restored_after_an_error():
    model = partly_training()
    before = modes(model)
    seen = {}

    def fails():
        with eval_mode(model):
            seen.update(modes(model))
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert not any(seen.values())
    assert modes(model) == before
