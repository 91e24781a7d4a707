"""The paper's models by name, with the parameter counts of its table (issue 2, done when 5). No memory is used."""

import pytest
import torch

from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling


def count(name, **options):
    with torch.device("meta"):
        model = ImageGPTForCausalImageModeling(ImageGPTConfig.from_size(name, **options))
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "use_bias", "parameters"),
    [
        ("small", False, 76_571_648),
        ("small", True, 76_682_240),
        ("medium", False, 455_157_760),
        ("large", False, 1_362_250_752),
    ],
)
def test_parameters_of_the_named_sizes(name, use_bias, parameters):
    assert count(name, use_bias=use_bias) == parameters


def test_igpt_xl_has_6_8_billion_parameters():
    assert round(count("xl", use_bias=False) / 1e9, 1) == 6.8


def test_use_bias_false_has_no_biases():
    with torch.device("meta"):
        model = ImageGPTForCausalImageModeling(ImageGPTConfig.from_size("small", use_bias=False))
    assert [name for name, _ in model.named_parameters() if name.endswith("bias")] == []
