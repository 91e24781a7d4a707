import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from imagegpt.model.layers import Projection
from imagegpt.training.ema import ExponentialMovingAverage
from imagegpt.training.optimizers import build_optimizers, learning_rate
from stripes import make_module, make_recipe, weights_of


def rates(**fields):
    recipe = make_recipe(training={"num_steps": 110, "warmup_steps": 10, "learning_rate": 1.0, **fields}).training
    return [learning_rate(step, recipe) for step in range(110)]


def test_the_rate_rises_and_falls():
    told = rates()
    assert told[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert told[10] == pytest.approx(1.0)
    assert told[60] == pytest.approx(0.5)
    assert 0 < told[-1] < 0.001
    assert all(a > b for a, b in pairwise(told[10:]))


def test_a_constant_rate_stays_up():
    assert rates(schedule="constant")[:12] == pytest.approx([*(0.1 * k for k in range(1, 11)), 1.0, 1.0])
    assert rates(schedule="constant")[-1] == 1.0


def test_without_warm_up_the_rate_begins_at_its_highest():
    assert rates(warmup_steps=0)[0] == 1.0


def test_decay_is_for_matrices_only():
    model = make_module().model
    recipe = make_recipe(training={"weight_decay": 0.3}).training
    [adamw] = build_optimizers(model, recipe)
    decayed, rest = adamw.param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    assert (decayed["betas"], rest["betas"]) == ((0.9, 0.95), (0.9, 0.95))
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert {names[id(weight)] for weight in decayed["params"]} == {
        "lm_head.weight",
        *(
            f"transformer.h.{block}.{name}.weight"
            for block in range(2)
            for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        ),
    }
    assert len(decayed["params"]) + len(rest["params"]) == len(names)


def test_the_first_update_is_adams_own():
    """The moments that are there from the beginning must not count as a step: Adam's first is a whole rate long."""
    linear = nn.Linear(1, 1, bias=False)
    before = linear.weight.item()
    [optimizer] = build_optimizers(linear, make_recipe(training={"weight_decay": 0.0, "learning_rate": 0.25}).training)
    (3 * linear.weight).sum().backward()
    optimizer.step()
    assert linear.weight.item() == pytest.approx(before - 0.25, abs=1e-6)


def test_muon_is_for_the_projections():
    model = make_module().model
    adamw, muon = build_optimizers(model, make_recipe(training={"optimizer": "muon", "weight_decay": 0.3}).training)
    names = {id(weight): name for name, weight in model.named_parameters()}
    num_maps = {names[id(weight)]: group["num_maps"] for group in muon.param_groups for weight in group["params"]}
    mine = {name for name in names.values() if ".c_" in name and name.endswith(".weight")}
    assert num_maps == {name: 3 if "c_attn" in name else 1 for name in mine}  # queries, keys and values
    assert {group["weight_decay"] for group in muon.param_groups} == {0.3}
    others = [names[id(weight)] for group in adamw.param_groups for weight in group["params"]]
    assert sorted([*mine, *others]) == sorted(names.values())


def test_updates_of_muon_are_as_large_as_adams():
    """Adam's first update changes every weight by the rate; Muon's is scaled to 0.2 of that in the mean."""
    projection = Projection(64, 128, bias=False)
    before = projection.weight.detach().clone()
    training = make_recipe(training={"optimizer": "muon", "weight_decay": 0.0, "learning_rate": 0.1}).training
    projection(torch.randn(50, 64)).square().sum().backward()
    for optimizer in build_optimizers(nn.ModuleList([projection]), training):
        optimizer.step()
    change = projection.weight.detach() - before
    assert change.square().mean().sqrt() == pytest.approx(0.1 * 0.2, rel=0.3)


def test_adapters_are_trained_alone():
    model = make_module().model
    for weight in model.parameters():
        weight.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    [adamw] = build_optimizers(model, make_recipe().training)
    assert [len(group["params"]) for group in adamw.param_groups] == [1]
    assert ExponentialMovingAverage(model, 0.5).weights.keys() == {"lm_head.weight"}


def test_a_shared_weight_is_updated_once():
    shared = nn.Linear(2, 2, bias=False)
    [optimizer] = build_optimizers(nn.Sequential(shared, shared), make_recipe().training)
    groups = optimizer.param_groups
    assert sum(len(group["params"]) for group in groups) == 1


def test_the_average_is_of_the_weights_of_each_step():
    """Decay 0.5, and (1 + s) / (10 + s) while that is less: 0.1, 2/11, 3/12."""
    linear = nn.Linear(2, 1)
    average = ExponentialMovingAverage(linear, 0.5)
    mean = linear.weight.detach().clone().double()
    for step in range(30):
        with torch.no_grad():
            linear.weight.normal_()
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * linear.weight.detach().double()
        torch.testing.assert_close(average.weights["weight"].double(), mean, rtol=1e-6, atol=1e-6)


def test_an_average_without_memory_is_the_last_weights():
    linear = nn.Linear(2, 1)
    average = ExponentialMovingAverage(linear, 0.0)
    nn.init.normal_(linear.weight)
    average.update(1000)
    assert average.weights["weight"].equal(linear.weight)


def test_the_average_can_take_the_place_of_the_weights():
    model = make_module().model
    average = ExponentialMovingAverage(model, 0.9)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    trained, mean = weights_of(model), {name: weight.clone() for name, weight in average.weights.items()}
    with average.swapped_in():
        assert all(weight.equal(mean[name]) for name, weight in model.named_parameters())
    assert all(weight.equal(trained[name]) for name, weight in model.named_parameters())
    assert all(weight.equal(mean[name]) for name, weight in average.weights.items())


def test_the_rate_of_the_last_step_is_not_zero():
    assert rates()[-1] == pytest.approx(0.5 * (1 - math.cos(math.pi / 100)))
