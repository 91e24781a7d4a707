"""Precision: exact float64 throughout, and half precision without overflow or drift."""

import pytest
import torch

import oracle
from helpers import image_ids, largest_difference, tiny_config, tiny_model
from imagegpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel
from imagegpt.model.layers import ImageGPTLayerNorm, eager_attention_forward

HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


def relative_error(values, exact):
    """Root mean square of the error over that of the exact values."""
    exact = torch.as_tensor(exact)
    return ((values.double() - exact).square().mean() / exact.square().mean()).sqrt().item()


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_bias": False},
        {"is_causal": False},
        {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3},
        {"scale_attn_weights": False, "activation_function": "tanh", "n_inner": 9},
        {"layer_norm_epsilon": 0.1, "activation_function": "relu"},
    ],
    ids=["default", "no_biases", "bidirectional", "inverse_layer", "unscaled_tanh", "epsilon_relu"],
)
def test_float64_model_matches_reference(options, backend):
    model = tiny_model(dtype=torch.float64, backend=backend, **options)
    ids = image_ids()
    outputs = model(ids, output_hidden_states=True)
    assert outputs.logits.dtype == torch.float64
    exact, streams = oracle.features(oracle.base_state(model), model.config, ids)
    assert largest_difference(outputs.logits, torch.as_tensor(oracle.logits(model, ids))) < 1e-12
    for state, expected in zip(outputs.hidden_states, [*streams, exact], strict=True):
        assert largest_difference(state, torch.as_tensor(expected)) < 1e-12


def test_float64_loss_matches_reference():
    model = tiny_model(dtype=torch.float64)
    ids = image_ids()
    loss = model(ids, labels=ids).loss
    assert loss.dtype == torch.float64
    assert abs(loss.item() - oracle.pixel_nll(oracle.logits(model, ids), ids)) < 1e-12


def test_upcasting_does_not_lower_the_precision_of_float64():
    model = tiny_model(dtype=torch.float64, reorder_and_upcast_attn=True)
    ids = image_ids()
    assert largest_difference(model(ids).logits, torch.as_tensor(oracle.logits(model, ids))) < 1e-12


def test_rounding_of_float32_is_what_the_parity_tolerance_assumes():
    # tests/model/test_parity.py allows 1e-5; that would be a habit if rounding were not near it.
    model = tiny_model()
    ids = image_ids()
    assert 1e-7 < largest_difference(model(ids).logits, torch.as_tensor(oracle.logits(model, ids))) < 5e-6


@HALVES
@pytest.mark.parametrize("size", [300.0, 6e4])
def test_norm_of_large_activations(size, dtype):
    # The reference squares in float16: 300^2 is more than 65504, the root infinite and the result silently 0.
    norm = ImageGPTLayerNorm(32)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 32))
    x = torch.randn(3, 32).sign() * size
    expected = x.double().sign() * torch.linspace(0.5, 2, 32).double()  # every element has the size of the root
    result = norm(x.to(dtype))
    assert result.dtype == dtype
    # One rounding, of the result: the input's, if any, cancels.
    assert relative_error(result, expected) < torch.finfo(dtype).eps


@HALVES
def test_norm_of_tiny_activations(dtype):
    # In float16 the square of 1e-4 is 0, and 1e-5 of epsilon is not the same as none.
    x = torch.full((1, 16), 1e-4, dtype=dtype)
    expected = x.double() / (x.double().square() + 1e-5).sqrt()
    assert relative_error(ImageGPTLayerNorm(16)(x), expected) < torch.finfo(dtype).eps


def test_gain_is_trained():
    norm = ImageGPTLayerNorm(8)
    norm(torch.randn(2, 8)).square().sum().backward()
    assert norm.weight.grad.abs().min() > 0


@HALVES
@pytest.mark.parametrize("model_class", [ImageGPTModel, ImageGPTForCausalImageModeling, ImageGPTForImageClassification])
def test_half_precision_loading_keeps_norms_in_float32(model_class, dtype, tmp_path):
    tiny_model(model_class, add_cross_attention=True).save_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path, dtype=dtype)
    assert model.dtype == dtype
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if ".ln_" in f".{name}" else dtype), name


def built_with_config(model_class, config, dtype):
    # What `AutoModel.from_config` calls.
    return model_class._from_config(config, dtype=dtype)


def built_with_default(model_class, config, dtype):
    torch.set_default_dtype(dtype)
    try:
        return model_class(config)
    finally:
        torch.set_default_dtype(torch.float32)


@HALVES
@pytest.mark.parametrize("build", [built_with_config, built_with_default])
@pytest.mark.parametrize("model_class", [ImageGPTModel, ImageGPTForCausalImageModeling, ImageGPTForImageClassification])
def test_half_precision_construction_keeps_norms_in_float32(model_class, build, dtype):
    model = build(
        model_class, tiny_config(add_cross_attention=model_class is not ImageGPTForImageClassification), dtype
    )
    assert model.dtype == dtype
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if ".ln_" in f".{name}" else dtype), name
    assert model(image_ids())[0].dtype == dtype


def test_float64_construction():
    model = ImageGPTForCausalImageModeling._from_config(tiny_config(), dtype=torch.float64)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("model_class", [ImageGPTModel, ImageGPTForCausalImageModeling, ImageGPTForImageClassification])
@pytest.mark.parametrize("has_cross_attention", [True, False])
def test_modules_kept_in_float32_exist(model_class, has_cross_attention):
    """As transformers' test suite checks."""
    model = model_class(tiny_config(add_cross_attention=has_cross_attention))
    names = [part for name, _ in model.named_parameters() for part in name.split(".")]
    assert set(model._keep_in_fp32_modules_strict) <= set(names)
    assert ("ln_cross_attn" in model._keep_in_fp32_modules_strict) == has_cross_attention


@HALVES
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_half_precision_logits_are_close_to_float64(dtype, backend, tmp_path):
    # Three blocks, each adding some roundings to the stream: 1.5 to 3 units in the last place were measured.
    exact = tiny_model(n_layer=3, dtype=torch.float64)
    tiny_model(n_layer=3).save_pretrained(tmp_path)
    model = ImageGPTForCausalImageModeling.from_pretrained(tmp_path, dtype=dtype, attn_implementation=backend)
    ids = image_ids()
    logits = model(ids).logits
    assert logits.dtype == dtype
    assert 0 < relative_error(logits, exact(ids).logits) < 6 * torch.finfo(dtype).eps


@HALVES
@pytest.mark.parametrize("how", ["to", "method"])
def test_fully_cast_model_works(how, dtype):
    # `model.half()` casts the gains too: less exact, but no error and no overflow.
    model = tiny_model()
    exact = tiny_model(dtype=torch.float64)(image_ids()).logits
    model = model.to(dtype) if how == "to" else model.half() if dtype == torch.float16 else model.bfloat16()
    logits = model(image_ids()).logits
    assert logits.dtype == dtype
    assert relative_error(logits, exact) < 6 * torch.finfo(dtype).eps


@HALVES
def test_loss_of_a_half_precision_model_is_computed_in_float32(dtype):
    model = tiny_model(dtype=dtype)
    ids = image_ids()
    outputs = model(ids, labels=ids)
    assert outputs.loss.dtype == torch.float32
    assert abs(outputs.loss.item() - oracle.pixel_nll(outputs.logits.detach().double().numpy(), ids)) < 1e-6


def test_loss_of_constant_logits_is_the_logarithm_of_the_colours_in_bfloat16():
    # bfloat16 has three digits: ln 512 would be 6.25.
    config = tiny_config(vocab_size=513, init_scheme="openai")
    model = ImageGPTForCausalImageModeling(config).to(torch.bfloat16)
    ids = image_ids(config=config)
    assert abs(model(ids, labels=ids).loss.item() - 6.2383246250395075) < 1e-6


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_autocast_to_bfloat16(backend):
    model, exact = tiny_model(backend=backend), tiny_model(dtype=torch.float64)
    ids = image_ids()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(ids, labels=ids)
    assert relative_error(outputs.logits, exact(ids).logits) < 6 * torch.finfo(torch.bfloat16).eps
    outputs.loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("upcast", [False, True])
def test_large_scores_do_not_overflow_in_float16(upcast):
    # Queries and keys of about 60 give scores of 60 * 60 * 32 = 115200 before, and 20365 after, the division by root d.
    model = tiny_model(ImageGPTModel, n_head=1, n_layer=1, reorder_and_upcast_attn=upcast, backend="eager")
    with torch.no_grad():
        model.h[0].attn.c_attn.weight[:, :64] *= 60
    state, config = model.state_dict(), model.config
    features = model.to(torch.float16)(image_ids()).last_hidden_state
    exact, _ = oracle.features({k: v.half() for k, v in state.items()}, config, image_ids())
    assert torch.isfinite(features).all()
    assert relative_error(features, exact) < 0.02


@HALVES
def test_upcast_attention_weights_are_more_exact_in_half_precision(dtype):
    """With large scores, as in a trained model, rounding to half precision changes the weights."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 4, 16, 8, generator=generator).mul(3).to(dtype) for _ in range(2))
    exact = oracle.softmax((query.double() @ key.double().transpose(-1, -2) / 8**0.5).numpy())

    def error(upcast):
        attention = tiny_model(ImageGPTModel, reorder_and_upcast_attn=upcast, dtype=dtype).h[0].attn
        _, weights = eager_attention_forward(attention, query, key, key, None, scaling=8**-0.5)
        assert weights.dtype == dtype
        return relative_error(weights, exact)

    assert error(upcast=True) < torch.finfo(dtype).eps / 2  # the last rounding alone
    assert error(upcast=False) > 2 * error(upcast=True)
