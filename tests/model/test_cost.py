"""The formulas of `cost` against the model's parameters and bytes, and torch's FLOP counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from helpers import cache_bytes
from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel
from imagegpt.model import cost
from imagegpt.sampling.plan import ExecutionPlan

CONFIGS = {
    "plain": {},
    "no biases": {"use_bias": False},
    "narrow MLP": {"n_inner": 20},
    "cross-attention": {"add_cross_attention": True},
    "pruned": {"pruned_heads": {0: [1], 1: [0, 2, 3]}},
}


def config(**overrides):
    fields = {"vocab_size": 18, "n_positions": 16, "n_embd": 32, "n_layer": 3, "n_head": 4}
    return ImageGPTConfig(**{**fields, **overrides})


@pytest.mark.parametrize("overrides", CONFIGS.values(), ids=CONFIGS.keys())
def test_parameters_and_bytes_match_model(overrides):
    model = ImageGPTForCausalImageModeling(config(**overrides))
    assert cost.num_parameters(model.config) == sum(p.numel() for p in model.parameters())
    assert cost.weight_bytes(model.config) == sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize("model_class", [ImageGPTForImageClassification, ImageGPTModel])
def test_parameters_of_saved_model_include_its_head(model_class, tmp_path):
    model_class(config(num_labels=5)).save_pretrained(tmp_path)
    saved = ImageGPTConfig.from_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path)
    assert cost.num_parameters(saved) == sum(p.numel() for p in model.parameters())
    assert cost.weight_bytes(saved) == sum(p.nbytes for p in model.parameters())


def test_bytes_in_half_precision_count_the_norms_in_float32(tmp_path):
    ImageGPTForCausalImageModeling(config()).save_pretrained(tmp_path)
    model = ImageGPTForCausalImageModeling.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert cost.weight_bytes(model.config, 2) == sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize(
    ("size", "without_biases", "with_biases"),
    [("small", 76_571_648, 76_682_240), ("medium", 455_157_760, 455_489_536), ("large", 1_362_250_752, 1_362_914_304)],
)
def test_named_sizes_have_published_parameter_counts(size, without_biases, with_biases):
    for use_bias, expected in ((False, without_biases), (True, with_biases)):
        named = ImageGPTConfig.from_size(size, use_bias=use_bias)
        assert cost.num_parameters(named) == expected
        with torch.device("meta"):
            assert sum(p.numel() for p in ImageGPTForCausalImageModeling(named).parameters()) == expected


@pytest.mark.parametrize("overrides", [{}, {"n_inner": 20}, CONFIGS["pruned"]], ids=["plain", "narrow MLP", "pruned"])
@torch.no_grad()
def test_flops_match_torch_counter(overrides):
    model = ImageGPTForCausalImageModeling(config(**overrides)).eval()
    model.set_attn_implementation("eager")  # torch does not count the CPU's fused attention
    with FlopCounterMode(display=False) as counter:
        cache = model(torch.zeros(1, 16, dtype=torch.int64)).past_key_values
    assert counter.get_total_flops() == cost.forward_flops(model.config)
    cache.crop(-6)  # 10 of 16 stay
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, dtype=torch.int64), past_key_values=cache)
    assert counter.get_total_flops() == step_flops(10, **overrides)


def step_flops(position, **overrides):
    """Images of one more pixel take one more step."""
    lengths = position + 1, position
    longer, shorter = (cost.image_flops(config(**{**overrides, "n_positions": length})) for length in lengths)
    return longer - shorter


def test_the_first_step_is_a_forward_pass():
    assert cost.image_flops(config(n_positions=1)) == cost.forward_flops(config(n_positions=1))


@pytest.mark.parametrize("overrides", [{}, CONFIGS["pruned"]], ids=["plain", "pruned"])
def test_cache_bytes_per_pixel(overrides):
    model = ImageGPTForCausalImageModeling(config(**overrides)).eval()
    cache = model(torch.zeros(1, 5, dtype=torch.int64)).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 5 * cost.cache_bytes_per_pixel(model.config)
    assert cost.cache_bytes_per_pixel(ImageGPTConfig.from_size("small")) * 1024 == 100_663_296


@pytest.mark.parametrize("overrides", [{}, CONFIGS["pruned"]], ids=["plain", "pruned"])
@pytest.mark.parametrize("backend", ["cpp", "torch"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_sampler_cache_bytes_per_pixel(overrides, precision, backend):
    """The C++ backend stores a 4-byte scale with each int8 vector; the torch backend stores bfloat16."""
    model = ImageGPTForCausalImageModeling(config(**overrides, n_positions=64, n_embd=64))
    plan = ExecutionPlan.choose(model, precision=precision, backend=backend)
    opened = plan.make_backend(3, 64)
    for row in range(3):
        opened.admit(row, torch.zeros(0, dtype=torch.int64))
    itemsize = {"float32": 4, "bfloat16": 2, "int8": 1 if backend == "cpp" else 2}[precision]
    scale_bytes = 4 if itemsize == 1 else 0
    num_vectors = cost.cache_bytes_per_pixel(model.config, 1) // model.transformer.h[0].attn.head_dim
    expected = cost.cache_bytes_per_pixel(model.config, itemsize) + num_vectors * scale_bytes
    assert plan.cache_bytes_per_pixel == expected
    assert cache_bytes(opened) == 3 * 64 * plan.cache_bytes_per_pixel
