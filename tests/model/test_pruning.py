"""Head pruning is equivalent to head masking, and survives saving.

transformers 5 dropped pruning, so the reference is the model itself with a head mask.
"""

import pytest
import torch

from helpers import image_ids, largest_difference, tiny_model
from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel

# Block 0 loses heads 0 and 2 of its four, block 1 head 3.
PRUNED = {0: [0, 2], 1: [3]}
MASK = torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]])


@pytest.mark.parametrize("model_class", [ImageGPTModel, ImageGPTForCausalImageModeling, ImageGPTForImageClassification])
@pytest.mark.parametrize("options", [{}, {"use_bias": False}], ids=["biases", "no_biases"])
def test_pruning_a_head_is_masking_it(model_class, options):
    model = tiny_model(model_class, dtype=torch.float64, **options)
    masked = model(image_ids(), head_mask=MASK, use_cache=False)[0]
    whole = model(image_ids(), use_cache=False)[0]
    model.prune_heads(PRUNED)
    pruned = model(image_ids(), use_cache=False)[0]
    assert largest_difference(pruned, masked) < 1e-12
    assert largest_difference(pruned, whole) > 1e-3


def test_weights_shrink():
    model = tiny_model(ImageGPTModel)
    model.prune_heads(PRUNED)
    shapes = [(block.attn.c_attn.weight.shape, block.attn.c_proj.weight.shape) for block in model.h]
    assert shapes == [((32, 3 * 16), (16, 32)), ((32, 3 * 24), (24, 32))]
    assert model.h[0].attn.c_attn.bias.shape == (48,)
    assert model.h[0].attn.c_proj.bias.shape == (32,)


def test_cross_attention_keeps_its_heads():
    model = tiny_model(add_cross_attention=True)
    model.prune_heads(PRUNED)
    encoded = torch.randn(2, 5, 32)
    assert model(image_ids(), encoder_hidden_states=encoded).logits.shape == (2, 16, 16)
    assert model.transformer.h[0].crossattention.q_attn.weight.shape == (32, 32)


def test_heads_keep_their_indices_when_pruned_twice():
    once, twice = tiny_model(dtype=torch.float64), tiny_model(dtype=torch.float64)
    once.prune_heads(PRUNED)
    twice.prune_heads({0: [0]})
    twice.prune_heads({0: [0, 2], 1: [3]})  # head 0 is gone already, head 2 is still called 2
    assert twice.config.pruned_heads == once.config.pruned_heads == {0: [0, 2], 1: [3]}
    assert largest_difference(once(image_ids()).logits, twice(image_ids()).logits) == 0


def test_head_mask_of_pruned_model_uses_original_indices():
    model = tiny_model(dtype=torch.float64)
    both = model(image_ids(), head_mask=torch.tensor([[0.0, 0.0, 1, 1], [1, 1, 1, 1]])).logits
    model.prune_heads({0: [0]})
    then = model(image_ids(), head_mask=torch.tensor([[1.0, 0.0, 1, 1], [1, 1, 1, 1]])).logits
    assert largest_difference(both, then) < 1e-12


@pytest.mark.parametrize("model_class", [ImageGPTForCausalImageModeling, ImageGPTForImageClassification])
def test_pruned_models_save_and_load(model_class, tmp_path):
    model = tiny_model(model_class)
    model.prune_heads(PRUNED)
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert loaded.config.pruned_heads == {0: [0, 2], 1: [3]}
    assert largest_difference(loaded(image_ids())[0], model(image_ids())[0]) == 0
    base = ImageGPTModel.from_pretrained(tmp_path)
    assert base.h[0].attn.c_attn.weight.shape == (32, 48)


def test_a_pruned_model_trains():
    model = tiny_model()
    model.prune_heads(PRUNED)
    model(image_ids(), labels=image_ids()).loss.backward()
    for block in model.transformer.h:
        assert block.attn.c_attn.weight.grad.shape == block.attn.c_attn.weight.shape
        assert block.attn.c_attn.weight.grad.abs().max() > 0


def test_pruning_in_the_configuration_builds_a_small_model():
    config = ImageGPTConfig(n_embd=32, n_layer=2, n_head=4, n_positions=16, vocab_size=17, pruned_heads={"1": [2, 0]})
    model = ImageGPTModel(config)
    assert [block.attn.c_proj.weight.shape[0] for block in model.h] == [32, 16]
    assert model.h[1].attn.kept_heads == [1, 3]


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({0: [4]}, "head 4 in block 0"),
        ({0: [-1]}, "head -1 in block 0"),
        ({2: [0]}, "block 2"),
        ({1: [0, 1, 2, 3]}, "leaves no head in block 1"),
    ],
)
def test_invalid_heads_are_an_error_and_change_nothing(heads, message):
    model = tiny_model()
    before = model(image_ids()).logits
    with pytest.raises(ValueError, match=message):
        model.prune_heads({0: [1], **heads} if 0 not in heads else heads)
    assert model.config.pruned_heads is None
    assert largest_difference(model(image_ids()).logits, before) == 0


def test_frozen_weights_stay_frozen():
    model = tiny_model(ImageGPTModel).requires_grad_(False)
    model.prune_heads(PRUNED)
    assert not any(p.requires_grad for p in model.parameters())
