"""What a recipe refuses, each in one sentence that names the field; see test_reading.py for the file around it."""

import math
import re

import pytest

from imagegpt.config import NAMED_SIZES
from imagegpt.training.recipe_io import parse_recipe, read_recipe
from stripes import make_recipe

PRETRAINED = {"n_layer": None, "n_embd": None, "n_head": None, "pretrained": "digits"}


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("training", {"num_steps": 0}, "training.num_steps is 0: it must be an integer from 1"),
        ("training", {"num_steps": True}, "training.num_steps is True: it must be an integer"),
        (
            "model",
            {"n_layer": None, "n_embd": None, "n_head": None, "pretrained": "digits", "embedding_init": "sinusoidal"},
            "model.pretrained and model.embedding_init = 'sinusoidal' were both given: a pretrained model has its",
        ),
        (
            "model",
            {"change_attention": True},
            "model.change_attention is true and model.pretrained is missing: it only applies to pretrained",
        ),
        (
            "objective",
            {"name": "joint-bert", "max_mask_probability": 0.5},
            "there is no objective.max_mask_probability in a recipe: objective 'joint-bert' has name, generative_",
        ),
        ("model", {"embedding_init": "sines"}, "model.embedding_init is 'sines': it must be 'random' or 'sinusoidal'"),
        ("training", {"num_steps": "many"}, "training.num_steps is 'many': it must be an integer"),
        ("training", {"num_steps": 1.5}, "training.num_steps is 1.5: it must be an integer"),
        ("training", {"num_steps": None}, "training.num_steps is None: it must be an integer"),
        ("training", {"num_steps": [1]}, "training.num_steps is [1]: it must be an integer"),
        ("training", {"batch_size": -4}, "training.batch_size is -4: it must be an integer from 1"),
        (
            "training",
            {"learning_rate": 0.0},
            "training.learning_rate is 0.0: it must be a number greater than 0 and at most 1",
        ),
        (
            "training",
            {"learning_rate": math.nan},
            "training.learning_rate is nan: it must be a number greater than 0 and at most 1e+30",
        ),
        (
            "training",
            {"learning_rate": math.inf},
            "training.learning_rate is inf: it must be a number greater than 0 and at most 1e+30",
        ),
        ("training", {"learning_rate": False}, "training.learning_rate is False: it must be a number"),
        (
            "training",
            {"max_grad_norm": -1.0},
            "training.max_grad_norm is -1.0: it must be a number greater than 0 and at most 1",
        ),
        ("training", {"warmup_steps": -1}, "training.warmup_steps is -1: it must be an integer from 0"),
        ("training", {"weight_decay": -0.1}, "training.weight_decay is -0.1: it must be a number from 0 to 1,000"),
        ("training", {"beta2": 1.0}, "training.beta2 is 1.0: it must be a number of at least 0 and less than 1"),
        (
            "training",
            {"ema_decay": 1},
            "training.ema_decay is 1: it must be a number of at least 0 and less than 1",
        ),
        ("training", {"seed": -1}, "training.seed is -1: it must be an integer from 0"),
        (
            "training",
            {"seed": 1 << 64},
            f"training.seed is {1 << 64}: it must be an integer from 0 to 2^63 - 1",
        ),
        (
            "training",
            {"precision": "float8"},
            "training.precision is 'float8': it must be 'auto', 'float32' or 'bfloat16'",
        ),
        ("training", {"schedule": "linear"}, "training.schedule is 'linear': it must be 'cosine' or 'constant'"),
        ("training", {"optimizer": "sgd"}, "training.optimizer is 'sgd': it must be 'adamw' or 'muon'"),
        (
            "training",
            {"optimizer": "muon", "parallel": "fsdp"},
            "training.optimizer is 'muon' and training.parallel 'fsdp': it needs unsharded weights, choose ddp",
        ),
        ("training", {"parallel": "tp"}, "training.parallel is 'tp': it must be 'ddp' or 'fsdp'"),
        (
            "training",
            {"gradient_checkpointing": "often"},
            "training.gradient_checkpointing is 'often': it must be true or false",
        ),
        ("training", {"compile": "often"}, "training.compile is 'often': it must be true or false"),
        ("training", {"attention": "fast"}, "training.attention is 'fast': it must be 'kernels', 'sdpa', "),
        (
            "training",
            {"warmup_steps": 12},
            "training.warmup_steps is 12 and training.num_steps 12: the warm-up must be shorter than the run",
        ),
        (
            "training",
            {"micro_batch_size": 3},
            "training.batch_size is 8, which training.micro_batch_size = 3 does not divide: choose a divisor",
        ),
        (
            "training",
            {"lr": 0.1},
            "there is no training.lr in a recipe: training has num_steps, batch_size, micro_batch_size",
        ),
        ("data", {"trains": "x"}, "there is no data.trains in a recipe: data has train, validation, test"),
        ("data", {"train": None}, "data.train is None: it must be text, put it in quotes"),
        ("data", {"train": 2024}, "data.train is 2024: it must be text, put it in quotes"),
        (
            "data",
            {"split": {"validation": 1.0}},
            "data.split.validation is 1.0: it must be a number greater than 0 and less than 1",
        ),
        (
            "data",
            {"split": {"validation": 0.5, "test": 0.5}},
            "data.split.validation is 0.5 and data.split.test 0.5: together they must be less than 1",
        ),
        ("data", {"split": {"share": 0.5}}, "there is no data.split.share in a recipe: data.split has seed, validatio"),
        (
            "data",
            {"augmentation": "blur"},
            "data.augmentation is 'blur': it must be 'none', 'flip', 'reflect-crop-flip'",
        ),
        ("data", {"side": 0}, "data.side is 0: it must be an integer from 1"),
        ("model", {"n_layer": None}, "model.n_layer is missing: give n_layer, n_embd and n_head, or a size"),
        (
            "model",
            {"n_head": 5},
            "model.n_embd is 32, which model.n_head = 5 does not divide: choose a width that is a multiple",
        ),
        ("model", {"size": "small"}, "model.size and model.n_layer were both given: give the size, or the numbers"),
        (
            "model",
            {"n_layer": None, "n_embd": None, "n_head": None, "size": "tiny"},
            f"model.size is 'tiny': choose one of {', '.join(NAMED_SIZES)}",
        ),
        (
            "model",
            {"pretrained": "digits"},
            "model.pretrained and model.n_layer were both given: a pretrained model has its own",
        ),
        ("model", {**PRETRAINED, "size": "small"}, "model.pretrained and model.size were both given"),
        (
            "model",
            {"shift_inputs": True},
            "model.shift_inputs is true and objective.name is 'autoregressive': it is for causal classifiers",
        ),
        ("model", {"resid_pdrop": 1}, "model.resid_pdrop is 1: it must be a number of at least 0 and less than 1"),
        ("model", {"init_scheme": "zeros"}, "model.init_scheme is 'zeros': it must be 'openai' or 'transformers'"),
        (
            "objective",
            {"name": "gan"},
            "objective.name is 'gan': it must be 'autoregressive', 'bert', 'classification',",
        ),
        (
            "objective",
            {"name": "bert", "mask_probability": 1},
            "objective.mask_probability is 1: it must be a number greater than 0 and less than 1",
        ),
        (
            "objective",
            {"mask_probability": 0.3},
            "there is no objective.mask_probability in a recipe: objective 'autoregressive' has name",
        ),
        (
            "objective",
            {"name": "bert", "generative_weight": 0.5},
            "there is no objective.generative_weight in a recipe: objective 'bert' has name, mask_probability",
        ),
        ("monitoring", {"keep_checkpoints": 1}, "monitoring.keep_checkpoints is 1: it must be an integer from 2"),
        (
            "monitoring",
            {"spike_nats": 0},
            "monitoring.spike_nats is 0: it must be a number greater than 0 and at most 1",
        ),
        ("monitoring", {"patience": 0}, "monitoring.patience is 0: it must be an integer from 1"),
        (
            "monitoring",
            {"trackers": "tensorboard"},
            "monitoring.trackers is 'tensorboard': it must be a list, in brackets",
        ),
        ("card", {"title": 7}, "card.title is 7: it must be text, put it in quotes"),
        ("cards", {"title": "x"}, "there is no cards in a recipe: a recipe has model, data, training, objective"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(section, fields, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as caught:
        make_recipe(**{section: fields})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "model is missing from the recipe: give it"),
        ({"model": 3}, "model is 3: it must be a section with size, n_layer, n_embd"),
        ({"model": None, "data": None, "training": None}, "model.n_layer is missing: give n_layer, n_embd and n_head"),
        (
            {"model": {"size": "small"}, "data": {}, "training": {"num_steps": 5}},
            "data.train is missing from the recipe: give it",
        ),
    ],
)
def test_what_is_missing_is_named(content, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        parse_recipe(content)


def test_numbers_may_be_text():
    training = make_recipe(training={"learning_rate": "3e-4", "num_steps": "20"}).training
    assert (training.learning_rate, training.num_steps) == (0.0003, 20)


def test_a_resolved_recipe_is_the_same_recipe(tmp_path):
    recipe = make_recipe(
        training={"learning_rate": 1e-5, "micro_batch_size": 2},
        monitoring={"trackers": ["tensorboard"], "spike_nats": 0.5},
        card={"description": "Zeichen: \u00e4\u2603, 'quoted', 3e-4\nand a second line"},
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert read_recipe(path) == recipe
    assert "beta2: 0.95" in recipe.to_yaml()


def test_recipes_are_frozen():
    with pytest.raises(AttributeError):
        make_recipe().training.num_steps = 3


@pytest.mark.parametrize("name", sorted(NAMED_SIZES))
def test_the_papers_sizes(name):
    recipe = make_recipe(model={"n_layer": None, "n_embd": None, "n_head": None, "size": name}).model
    config = recipe.config(num_colors=512, num_pixels=1024, is_causal=False)
    for field in ("n_layer", "n_embd", "n_head"):
        assert getattr(config, field) == NAMED_SIZES[name][field]
    assert (config.vocab_size, config.n_positions, config.is_causal) == (513, 1024, False)


def test_model_options_reach_the_configuration():
    options = {
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.2,
        "attn_pdrop": 0.3,
        "use_bias": True,
        "init_scheme": "transformers",
    }
    config = make_recipe(model=options).model.config(num_colors=16, num_pixels=16, is_causal=True)
    assert {name: getattr(config, name) for name in options} == options
    assert (config.n_layer, config.n_embd, config.n_head) == (2, 32, 4)
