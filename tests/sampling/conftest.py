import pytest
import torch

from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling


@pytest.fixture
def build_model():
    """Small random models whose pixels depend visibly on what came before."""

    def build(**overrides):
        fields = {
            "vocab_size": 11,
            "n_positions": 16,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "initializer_range": 0.5,
        }
        torch.manual_seed(0)
        return ImageGPTForCausalImageModeling(ImageGPTConfig(**{**fields, **overrides})).eval()

    return build


@pytest.fixture
def tiny_model(build_model):
    return build_model()
