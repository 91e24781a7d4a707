"""Attention: every backend, every mask, causality, cross-attention, dropout.

The oracle is `oracle.py`, in float64. Tolerances of float32 comparisons are the parity tests' 1e-5.
"""

import numpy as np
import pytest
import torch
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import oracle
from helpers import image_ids, largest_difference, tiny_config, tiny_model
from imagegpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel
from imagegpt.model.layers import eager_attention_forward

EAGER_AND_SDPA = pytest.mark.parametrize("backend", ["eager", "sdpa"])
PADDING = {
    "left": torch.tensor([[0] * 5 + [1] * 11, [1] * 16]),
    "right": torch.tensor([[1] * 10 + [0] * 6, [1] * 16]),
    "hole": torch.tensor([[1] * 4 + [0] * 3 + [1] * 9, [1] * 16]),
}


def test_sdpa_is_the_default_backend():
    assert ImageGPTModel(tiny_config()).config._attn_implementation == "sdpa"


# --- What a pixel sees ---


@EAGER_AND_SDPA
def test_causal_attention_sees_no_later_pixel(backend):
    model = tiny_model(backend=backend)
    ids = image_ids(batch=1)
    logits = model(ids).logits
    for changed in range(1, 16):
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 1) % 16
        difference = (model(other).logits - logits)[0].abs().amax(-1)
        assert difference[:changed].max() == 0, f"pixel {changed} is seen by an earlier one"
        assert difference[changed:].min() > 1e-4, f"pixel {changed} is not seen by a later one"


@EAGER_AND_SDPA
def test_bidirectional_attention_sees_all_pixels(backend):
    model = tiny_model(backend=backend, is_causal=False)
    ids = image_ids(batch=1)
    logits = model(ids).logits
    for changed in range(16):
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 1) % 16
        assert (model(other).logits - logits)[0].abs().amax(-1).min() > 1e-4, f"pixel {changed}"


@pytest.mark.parametrize("model_class", [ImageGPTModel, ImageGPTForCausalImageModeling, ImageGPTForImageClassification])
def test_models_have_no_buffers(model_class):
    # The reference keeps a T x T boolean matrix in every block: 24 MB for iGPT-S, 375 MB for 64 x 64 pixels.
    assert list(tiny_model(model_class, add_cross_attention=True).buffers()) == []


# --- Masks ---


@EAGER_AND_SDPA
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("padding", PADDING)
def test_padding_matches_reference(padding, is_causal, backend):
    model = tiny_model(dtype=torch.float64, backend=backend, is_causal=is_causal)
    ids, mask = image_ids(), PADDING[padding]
    allowed = np.broadcast_to(mask.bool().numpy()[:, None, :], (2, 16, 16)).copy()
    if is_causal:
        allowed &= np.tril(np.ones((16, 16), dtype=bool))
    real = mask.bool() & torch.as_tensor(allowed.any(-1))
    allowed |= ~allowed.any(-1, keepdims=True)  # whatever a row that sees nothing computes, it must be something
    exact = torch.as_tensor(oracle.logits(model, ids, allowed=allowed))
    assert largest_difference(model(ids, attention_mask=mask).logits[real], exact[real]) < 1e-12


@EAGER_AND_SDPA
@pytest.mark.parametrize("padding", ["left", "right"])
def test_padding_does_not_change_real_pixels(padding, backend):
    model = tiny_model(backend=backend)
    mask = PADDING[padding]
    real = mask[0].bool()
    pixels = image_ids(batch=1, pixels=int(real.sum()))
    ids = torch.full((2, 16), 3)
    ids[0, real] = pixels
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    alone = model(pixels).logits[0]
    padded = model(ids, attention_mask=mask, position_ids=positions).logits[0, real]
    assert largest_difference(padded, alone) < 1e-5


@EAGER_AND_SDPA
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32])
def test_dtype_of_the_padding_mask_does_not_matter(mask_dtype, backend):
    model = tiny_model(backend=backend)
    expected = model(image_ids(), attention_mask=PADDING["left"]).logits
    mask = PADDING["left"].to(mask_dtype)
    assert largest_difference(model(image_ids(), attention_mask=mask).logits, expected) == 0


@EAGER_AND_SDPA
def test_fully_padded_image_does_not_affect_others(backend):
    model = tiny_model(backend=backend)
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[1] = 0
    ids = image_ids()
    outputs = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100))
    assert torch.isfinite(outputs.logits).all()
    assert largest_difference(outputs.logits[:1], model(ids[:1]).logits) < 1e-5
    outputs.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@EAGER_AND_SDPA
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_4d_mask(kind, backend):
    """A band: each pixel sees itself and the two before it."""
    model = tiny_model(dtype=torch.float64, backend=backend)
    ones = torch.ones(16, 16, dtype=torch.bool)
    allowed = ones.tril() & ~ones.tril(-3)
    mask = allowed.expand(2, 1, 16, 16)
    if kind == "float":
        mask = torch.zeros(2, 1, 16, 16, dtype=torch.float64).masked_fill(~mask, torch.finfo(torch.float64).min)
    exact = oracle.logits(model, image_ids(), allowed=allowed.expand(2, 16, 16).numpy())
    logits = model(image_ids(), attention_mask=mask).logits
    assert largest_difference(logits, torch.as_tensor(exact)) < 1e-12


# --- Head masks and attention weights ---


@EAGER_AND_SDPA
@pytest.mark.parametrize("per_layer", [True, False])
def test_head_mask_matches_reference(per_layer, backend):
    model = tiny_model(dtype=torch.float64, backend=backend)
    mask = torch.tensor([[1.0, 0.0, 0.5, 1.0], [0.0, 1.0, 2.0, 0.3]], dtype=torch.float64)
    if not per_layer:
        mask = mask[1]
    exact = oracle.logits(model, image_ids(), head_mask=mask.expand(2, 4))
    logits = model(image_ids(), head_mask=mask).logits
    assert largest_difference(logits, torch.as_tensor(exact)) < 1e-12
    assert largest_difference(logits, model(image_ids()).logits) > 0.01


def test_head_mask_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"head_mask has the shape \(3,\): give \(4,\) or \(2, 4\)"):
        tiny_model()(image_ids(), head_mask=torch.ones(3))


@pytest.mark.parametrize("asked", ["output_attentions", "head_mask", "reorder_and_upcast_attn"])
def test_fallback_to_eager_attention_warns_once(asked, transformers_log):
    options = {"reorder_and_upcast_attn": True} if asked == "reorder_and_upcast_attn" else {}
    inputs = {"output_attentions": {"output_attentions": True}, "head_mask": {"head_mask": torch.ones(4)}}.get(
        asked, {}
    )
    expected = tiny_model(backend="eager", **options)(image_ids(), **inputs)
    assert transformers_log == []
    model = tiny_model(**options)
    outputs = [model(image_ids(), **inputs) for _ in range(3)][-1]
    assert len(transformers_log) == 1
    assert asked in transformers_log[0]
    assert "eager" in transformers_log[0]
    assert largest_difference(outputs.logits, expected.logits) == 0
    assert model.config._attn_implementation == "sdpa"


def test_attention_weights_with_sdpa():
    model = tiny_model()
    weights = model(image_ids(), output_attentions=True).attentions
    assert [w.shape for w in weights] == [(2, 4, 16, 16)] * 2
    for layer in weights:
        assert largest_difference(layer.sum(-1), torch.ones(2, 4, 16)) < 1e-6
        assert layer.triu(1).abs().max() == 0
    eager = tiny_model(backend="eager")(image_ids(), output_attentions=True).attentions
    assert all(largest_difference(a, b) == 0 for a, b in zip(weights, eager, strict=True))


def test_attention_weights_requested_by_config():
    model = tiny_model(backend="eager", output_attentions=True)
    assert len(model(image_ids()).attentions) == 2


# --- Backends ---


def test_backend_can_be_changed_after_construction(monkeypatch):
    model = tiny_model()
    calls = []
    original = ALL_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setitem(
        ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    sdpa = model(image_ids()).logits
    assert len(calls) == 2
    model.set_attn_implementation("eager")
    eager = model(image_ids()).logits
    assert len(calls) == 2
    model.set_attn_implementation("sdpa")
    again = model(image_ids()).logits
    assert len(calls) == 4
    assert largest_difference(sdpa, eager) < 1e-5
    assert largest_difference(sdpa, again) == 0


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="nonsense"):
        tiny_model().set_attn_implementation("nonsense")


@pytest.mark.parametrize("options", [{}, {"scale_attn_by_inverse_layer_idx": True}, {"add_cross_attention": True}])
def test_registered_attention_is_called(options):
    """Engines that bring their own attention (vLLM, SGLang) rely on these shapes, and on `scaling`."""
    calls = []

    def attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
        calls.append((module, query.shape, key.shape, value.shape, scaling, kwargs))
        return eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout)

    AttentionInterface.register("counted", attention)
    AttentionMaskInterface.register("counted", eager_mask)
    try:
        model = tiny_model(backend="eager", **options)
        inputs = {"input_ids": image_ids(pixels=9)}
        if "add_cross_attention" in options:
            inputs["encoder_hidden_states"] = torch.randn(2, 5, 32)
        expected = model(**inputs).logits
        model.set_attn_implementation("counted")
        logits = model(**inputs, engine_argument="passed on").logits
    finally:
        del ALL_ATTENTION_FUNCTIONS._global_mapping["counted"]
        del ALL_MASK_ATTENTION_FUNCTIONS._global_mapping["counted"]
    assert largest_difference(logits, expected) == 0
    own = [call for call in calls if not call[0].is_cross_attention]
    assert len(own) == 2
    for layer, (module, query, key, value, scaling, kwargs) in enumerate(own):
        assert module.layer_idx == layer
        assert query == key == value == (2, 4, 9, 8)
        assert scaling == pytest.approx(8**-0.5 / (layer + 1 if "scale_attn_by_inverse_layer_idx" in options else 1))
        assert kwargs["is_causal"] is True
        assert kwargs["engine_argument"] == "passed on"
    cross = [call for call in calls if call[0].is_cross_attention]
    assert len(cross) == (2 if "add_cross_attention" in options else 0)
    for _, query, key, value, _, kwargs in cross:
        assert query == (2, 4, 9, 8)
        assert key == value == (2, 4, 5, 8)
        assert kwargs["is_causal"] is False


# --- Cross-attention ---


def encoder_output(dtype=torch.float64):
    return torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


ENCODER_MASK = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 0, 1]])


@EAGER_AND_SDPA
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("use_cache", [False, True])
def test_cross_attention_matches_reference(use_cache, masked, backend):
    model = tiny_model(dtype=torch.float64, backend=backend, add_cross_attention=True, n_layer=3)
    encoded, mask = encoder_output(), ENCODER_MASK if masked else None
    logits = model(image_ids(), encoder_hidden_states=encoded, encoder_attention_mask=mask, use_cache=use_cache).logits
    exact = oracle.logits(model, image_ids(), encoded=encoded, encoder_allowed=None if mask is None else mask.bool())
    assert largest_difference(logits, torch.as_tensor(exact)) < 1e-12


@EAGER_AND_SDPA
def test_decoder_and_encoder_masks_combined(backend):
    # In the reference the decoder's mask was added to the cross-attention's scores, a shape error.
    model = tiny_model(dtype=torch.float64, backend=backend, add_cross_attention=True)
    mask, encoded = PADDING["right"], encoder_output()
    logits = model(
        image_ids(), attention_mask=mask, encoder_hidden_states=encoded, encoder_attention_mask=ENCODER_MASK
    ).logits
    allowed = np.tril(np.ones((16, 16), dtype=bool)) & mask.bool().numpy()[:, None, :]
    exact = oracle.logits(model, image_ids(), allowed=allowed, encoded=encoded, encoder_allowed=ENCODER_MASK.bool())
    real = mask.bool()
    assert largest_difference(logits[real], torch.as_tensor(exact)[real]) < 1e-12


def test_masked_encoder_positions_have_no_influence():
    model = tiny_model(add_cross_attention=True)
    encoded = encoder_output(torch.float32)
    changed = encoded + 100 * (1 - ENCODER_MASK)[..., None]
    with_mask = [
        model(image_ids(), encoder_hidden_states=e, encoder_attention_mask=ENCODER_MASK).logits
        for e in (encoded, changed)
    ]
    assert largest_difference(*with_mask) < 1e-6
    without = [model(image_ids(), encoder_hidden_states=e).logits for e in (encoded, changed)]
    assert largest_difference(*without) > 0.01


def test_encoder_output_has_gradients():
    model = tiny_model(add_cross_attention=True)
    encoded = encoder_output(torch.float32).requires_grad_()
    model(image_ids(), encoder_hidden_states=encoded, encoder_attention_mask=ENCODER_MASK).logits.sum().backward()
    seen = ENCODER_MASK.bool()
    assert encoded.grad[seen].abs().amax(-1).min() > 0
    assert encoded.grad[~seen].abs().max() == 0


def test_cross_attention_weights_are_recorded():
    model = tiny_model(add_cross_attention=True, backend="eager")
    outputs = model(image_ids(), encoder_hidden_states=encoder_output(torch.float32), output_attentions=True)
    assert [w.shape for w in outputs.cross_attentions] == [(2, 4, 16, 7)] * 2
    assert [w.shape for w in outputs.attentions] == [(2, 4, 16, 16)] * 2


def test_encoder_output_without_cross_attention_is_an_error():
    with pytest.raises(ValueError, match="add_cross_attention"):
        tiny_model()(image_ids(), encoder_hidden_states=encoder_output(torch.float32))


# --- Dropout ---


@EAGER_AND_SDPA
@pytest.mark.parametrize("field", ["resid_pdrop", "embd_pdrop", "attn_pdrop"])
def test_dropout_only_in_training(field, backend):
    model, plain = tiny_model(backend=backend, **{field: 0.5}), tiny_model(backend=backend)
    ids = image_ids()
    assert largest_difference(model(ids).logits, plain(ids).logits) == 0
    model.train()
    plain.train()
    assert largest_difference(model(ids).logits, model(ids).logits) > 0.01
    assert largest_difference(plain(ids).logits, plain(ids).logits) == 0


@EAGER_AND_SDPA
def test_attention_dropout_rate_and_mean(backend):
    """Values of one make the mixed value the sum of the weights that were kept, over 1 - p."""
    model = tiny_model(ImageGPTModel, n_layer=1, n_head=1, attn_pdrop=0.25, backend=backend, n_positions=900)
    attention = model.h[0].attn
    with torch.no_grad():
        attention.c_attn.weight.zero_()  # equal scores: pixel t gives 1 / (t + 1) to each it sees
        attention.c_attn.bias[:64] = 0
        attention.c_attn.bias[64:] = 1
        attention.c_proj.weight.copy_(torch.eye(32))
        attention.c_proj.bias.zero_()
    mixed, _ = attention.train()(torch.zeros(4, 900, 32))
    last = mixed[:, -1, 0]
    # A mean of 900 draws of 0 or 1 / 0.75: standard deviation sqrt(0.25 / 0.75 / 900) = 0.019 an image.
    assert 0.94 < last.mean() < 1.06
    assert 0 < last.std() < 0.08


@pytest.mark.parametrize("part", ["attn", "mlp"])
def test_residual_dropout_rate(part):
    model = tiny_model(ImageGPTModel, resid_pdrop=0.3, n_layer=1).train()
    module = getattr(model.h[0], part)
    output = module(torch.randn(4, 16, 32))
    output = output[0] if part == "attn" else output
    # 2048 draws: three standard deviations are 0.03.
    assert abs((output == 0).float().mean() - 0.3) < 0.03
