"""Initialisation: standard deviations of all weights, in both schemes, with non-default ranges.

Once, whole attention layers and models were never visited: transformers takes classes outside its own package for code
that draws over loaded weights, and passes over modules without parameters of their own. Every projection had 0.02.

A sample of n numbers has a standard deviation that is itself known to 1 / sqrt(2 n): with the 3000 and more of the
smallest matrix here, 6 % are more than four of those, and the schemes differ by far more.
"""

import math

import pytest
import torch

from helpers import image_ids, tiny_config, tiny_model
from imagegpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel

SIZES = {"n_embd": 64, "n_layer": 3, "n_positions": 64, "vocab_size": 65, "num_labels": 50, "add_cross_attention": True}


def kind_of(name):
    """The row of the table in `imagegpt.model.initialization` that a parameter belongs to."""
    for kind in ("wte", "wpe", "lm_head", "score", "attn.c_proj", "attention.c_proj", "mlp.c_proj", "mlp.c_fc"):
        if kind in name:
            return kind.replace("attention.", "attn.")
    return "attn.qkv"


def expected_std(scheme, std, config):
    """Standard deviations by kind; see `paper.md` for OpenAI's, transformers' modeling_imagegpt.py for the other."""
    width, depth = config.n_embd, config.n_layer
    if scheme == "transformers":
        small = std / math.sqrt(2 * depth)
        return {
            **dict.fromkeys(["wte", "wpe", "lm_head", "score", "attn.qkv", "mlp.c_fc"], std),
            **dict.fromkeys(["attn.c_proj", "mlp.c_proj"], small),
        }
    return {
        "wte": std,
        "wpe": std / 2,
        "lm_head": 0.0,
        "score": 0.0,
        "attn.qkv": width**-0.5,
        "attn.c_proj": (width * depth) ** -0.5,
        "mlp.c_fc": std,
        "mlp.c_proj": std,
    }


@pytest.mark.parametrize("std", [0.02, 0.5])
@pytest.mark.parametrize("scheme", ["transformers", "openai"])
@pytest.mark.parametrize("model_class", [ImageGPTModel, ImageGPTForCausalImageModeling, ImageGPTForImageClassification])
def test_standard_deviation_of_each_weight(model_class, scheme, std):
    config = tiny_config(init_scheme=scheme, initializer_range=std, **SIZES)
    seen = set()
    for name, parameter in model_class(config).named_parameters():
        if "ln_" in name:
            assert torch.equal(parameter, torch.ones(64)), name
        elif name.endswith("bias"):
            assert torch.equal(parameter, torch.zeros_like(parameter)), name
        else:
            kind = kind_of(name)
            seen.add(kind)
            expected = expected_std(scheme, std, config)[kind]
            assert parameter.std().item() == pytest.approx(expected, rel=0.06), name
            assert abs(parameter.mean().item()) <= 5 * expected / math.sqrt(parameter.numel()), name
    assert {"wte", "wpe", "attn.qkv", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"} <= seen


def test_initial_loss_with_openai_scheme_is_log_colors():
    config = tiny_config(vocab_size=513, init_scheme="openai")
    ids = image_ids(config=config)
    loss = ImageGPTForCausalImageModeling(config)(ids, labels=ids).loss
    assert loss.item() == pytest.approx(math.log(512), abs=1e-6)
    assert math.log(512) == pytest.approx(6.2383, abs=5e-5)  # paper.md


def test_weights_depend_only_on_seed():
    def draw(seed):
        torch.manual_seed(seed)
        return ImageGPTForCausalImageModeling(tiny_config()).state_dict()

    first, again, other = draw(0), draw(0), draw(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])


@pytest.mark.parametrize("scheme", ["transformers", "openai"])
def test_loading_does_not_reinitialize_loaded_weights(scheme, tmp_path):
    model = ImageGPTForCausalImageModeling(tiny_config(init_scheme=scheme))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.25)
    model.save_pretrained(tmp_path)
    loaded = ImageGPTForCausalImageModeling.from_pretrained(tmp_path)
    assert all((parameter == 0.25).all() for parameter in loaded.parameters())


def test_a_new_head_on_loaded_weights_follows_the_scheme(tmp_path):
    ImageGPTModel(tiny_config(init_scheme="openai")).save_pretrained(tmp_path)
    classifier = ImageGPTForImageClassification.from_pretrained(tmp_path, num_labels=5)
    assert classifier.score.weight.shape == (5, 32)
    assert (classifier.score.weight == 0).all()


@pytest.mark.parametrize("scheme", ["transformers", "openai"])
def test_only_missing_weights_are_initialized(tmp_path, scheme):
    """The folder lacks only the classifier's head; module-wise initialisation must not change the rest."""
    body = tiny_model(ImageGPTModel, init_scheme=scheme)
    body.save_pretrained(tmp_path)
    classifier = ImageGPTForImageClassification.from_pretrained(tmp_path)
    for name, weight in body.state_dict().items():
        assert torch.equal(classifier.transformer.state_dict()[name], weight), name
    assert (classifier.score.weight == 0).all() == (scheme == "openai")
