"""The defects of transformers 5.23's ImageGPT listed at the end of paper.md: present there, fixed here.

Each test first shows the defect in the pinned reference. When a new version mends one, its test fails, and the docs
want a new sentence. Number 10, the image processor, is in images/test_processor.py.
"""

import importlib.util
import math

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache

import oracle
from helpers import ReferenceConfig as TheirConfig
from helpers import (
    before_transformers,
    image_ids,
    largest_difference,
    randomize,
    reference,
    reference_for,
    tiny_config,
    tiny_model,
)
from imagegpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel
from imagegpt.model.layers import ImageGPTLayerNorm

pytestmark = pytest.mark.parity

SOS = 16


def their_model(**options):
    """transformers' model with random weights, for configurations that ours refuses."""
    size = {"vocab_size": 17, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4, **options}
    return randomize(reference.ImageGPTForCausalImageModeling(TheirConfig(**size))).eval()


def test_defect_1_static_cache_samples_wrong_tokens():
    ours = tiny_model(n_positions=36)
    theirs = reference_for(ours)
    prompt = torch.tensor([[SOS, 0], [SOS, 1], [SOS, 2]])
    greedy = {"do_sample": False, "max_new_tokens": 35}
    right = ours.generate(prompt, use_cache=False, **greedy)
    assert torch.equal(theirs.generate(prompt, **greedy), right)

    if before_transformers("5.18"):
        with pytest.raises(RuntimeError, match="must match the size of tensor"):
            theirs.generate(prompt, cache_implementation="static", **greedy)
    else:
        wrong = theirs.generate(prompt, cache_implementation="static", **greedy)
        assert (wrong != right)[:, 2:].float().mean() > 0.1

    assert torch.equal(ours.generate(prompt, cache_implementation="static", **greedy), right)


def cross_attention_inputs():
    encoded = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(5))
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0]])
    return {"input_ids": image_ids(), "encoder_hidden_states": encoded}, mask


def exact_cross_attention(model, inputs, mask=None):
    exact = oracle.logits(
        model,
        inputs["input_ids"],
        encoded=inputs["encoder_hidden_states"].double(),
        encoder_allowed=None if mask is None else mask.bool(),
    )
    return torch.as_tensor(exact)


def test_defect_2_cross_attention_fails_in_the_default_call():
    ours = tiny_model(add_cross_attention=True)
    inputs, _ = cross_attention_inputs()
    with pytest.raises(UnboundLocalError, match="is_updated"):
        reference_for(ours)(**inputs)
    assert largest_difference(ours(**inputs).logits, exact_cross_attention(ours, inputs)) < 1e-5


def test_defect_2_encoder_attention_mask_is_ignored():
    ours = tiny_model(add_cross_attention=True)
    inputs, mask = cross_attention_inputs()
    theirs = reference_for(ours)
    with_mask = theirs(**inputs, encoder_attention_mask=mask, use_cache=False).logits
    assert largest_difference(with_mask, theirs(**inputs, use_cache=False).logits) == 0

    logits = ours(**inputs, encoder_attention_mask=mask).logits
    assert largest_difference(logits, exact_cross_attention(ours, inputs, mask)) < 1e-5
    assert largest_difference(logits, with_mask) > 0.01


def test_defect_2_decoder_mask_with_an_encoder_is_a_shape_error():
    ours = tiny_model(add_cross_attention=True)
    inputs, _ = cross_attention_inputs()
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[0, 12:] = 0
    with pytest.raises(RuntimeError, match="must match the size of tensor"):
        reference_for(ours)(**inputs, attention_mask=mask, use_cache=False)
    logits = ours(**inputs, attention_mask=mask).logits
    real = mask.bool()
    assert largest_difference(logits[real], exact_cross_attention(ours, inputs)[real]) < 1e-5


@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")  # the reference's, since 5.24
def test_defect_2_cross_cache_holds_every_key_twice():
    ours = tiny_model(add_cross_attention=True)
    inputs, _ = cross_attention_inputs()

    def keys_held(model):
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        for pixel in range(2):
            ids = inputs["input_ids"][:, pixel : pixel + 1]
            model(ids, encoder_hidden_states=inputs["encoder_hidden_states"], past_key_values=cache)
        return cache.cross_attention_cache.layers[0].keys.shape[2]

    assert keys_held(reference_for(ours)) == 2 * 7
    assert keys_held(ours) == 7


def test_defect_3_no_other_attention_than_eager(monkeypatch):
    ours = tiny_model(backend="eager")
    theirs = reference_for(ours)
    supported = ("_supports_sdpa", "_supports_flash_attn", "_supports_flex_attn", "_can_compile_fullgraph")
    assert [getattr(theirs, name) for name in supported] == [False] * 4
    assert [getattr(ours, name) for name in supported] == [True] * 4

    calls = []
    original = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    for model in (theirs, ours):
        model.set_attn_implementation("sdpa")
        calls.clear()
        model(image_ids())
        assert len(calls) == (0 if model is theirs else 2)


def test_defect_3_a_square_buffer_in_every_block():
    ours = tiny_model()
    assert [tuple(buffer.shape) for buffer in reference_for(ours).buffers()] == [(1, 1, 16, 16)] * 2
    assert list(ours.buffers()) == []


def test_defect_4_the_exact_likelihood_cannot_be_had_from_labels():
    ours = tiny_model()
    theirs = reference_for(ours)
    pixels = image_ids(sos=False)
    whole = torch.cat([torch.full((2, 1), SOS), pixels], dim=1)
    exact = oracle.pixel_nll(oracle.logits(ours, whole[:, :-1]), whole)

    with pytest.raises(IndexError):
        theirs(whole, labels=whole)
    without_the_last = theirs(whole[:, :-1], labels=whole[:, :-1]).loss.item()
    assert abs(without_the_last - exact) > 1e-3

    assert ours(whole, labels=whole).loss.item() == pytest.approx(exact, abs=1e-6)


def test_defect_5_classified_pixels_sit_one_position_early():
    ours = tiny_model(ImageGPTForImageClassification, num_labels=3, shift_inputs=True)
    theirs = reference_for(ours)
    pixels = image_ids(sos=False)
    entered = {}
    for name, model in (("ours", ours), ("theirs", theirs)):
        model.transformer.drop.register_forward_hook(lambda m, args, out, name=name: entered.update({name: args[0]}))
        model(pixels)
    wte, wpe = ours.transformer.wte.weight, ours.transformer.wpe.weight
    # Pixel t belongs at position t + 1, as in pre-training, where the start token has position 0.
    assert largest_difference(entered["theirs"], wte[pixels] + wpe) < 1e-6
    assert largest_difference(entered["ours"][:, 1:], wte[pixels[:, :-1]] + wpe[1:]) < 1e-6
    assert largest_difference(entered["ours"][:, 0], (wte[SOS] + wpe[0]).expand(2, -1)) < 1e-6


def test_defect_6_norm_overflows_in_float16():
    x = torch.full((1, 32), 300.0, dtype=torch.float16)
    theirs, ours = reference.ImageGPTLayerNorm((32,)), ImageGPTLayerNorm(32)
    with torch.no_grad():
        theirs.weight.fill_(1)
    assert (theirs.half()(x) == 0).all()
    assert largest_difference(ours(x), torch.ones(1, 32)) < 1e-3
    assert largest_difference(ours.half()(x), torch.ones(1, 32)) < 1e-3


@pytest.mark.parametrize("option", ["is_causal", "is_decoder"])
def test_defect_7_always_causal(option):
    def first_logits_move(model):
        ids = image_ids()
        other = ids.clone()
        other[:, -1] = (other[:, -1] + 1) % 16
        return largest_difference(model(ids).logits[:, 0], model(other).logits[:, 0]) > 1e-4

    assert not first_logits_move(their_model(**{option: False}))
    assert not first_logits_move(tiny_model())
    assert first_logits_move(tiny_model(is_causal=False))


def test_defect_8_tied_embeddings_make_the_start_token_predictable():
    assert their_model(tie_word_embeddings=True)(image_ids()).logits.shape[-1] == 17  # 16 colours and sos
    with pytest.raises(ValueError, match="tie_word_embeddings is True"):
        tiny_config(tie_word_embeddings=True)
    assert tiny_model()(image_ids()).logits.shape[-1] == 16


def test_defect_9_generate_without_arguments_fails():
    with pytest.raises(ValueError, match="bos_token_id"):
        their_model().generate()
    assert tiny_model().generate().shape == (1, 17)


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default `max_length`:UserWarning")
def test_defect_9_the_default_length_is_20_tokens():
    ours = tiny_model(n_positions=36)
    prompt = torch.full((1, 1), SOS)
    # 20 new tokens in transformers 5.23; in 4.x 20 with the prompt.
    assert reference_for(ours).generate(prompt, do_sample=False).shape[1] in (20, 21)
    assert ours.generate(prompt).shape == (1, 37)


def test_defect_9_too_long_is_a_raw_index_error():
    ours = tiny_model()
    prompt = torch.full((1, 1), SOS)
    with pytest.raises(IndexError, match="index out of range in self"):
        reference_for(ours).generate(prompt, max_new_tokens=20, do_sample=False)
    with pytest.raises(ValueError, match="room for 17, the start token and 16 pixels"):
        ours.generate(prompt, max_new_tokens=20)


@pytest.mark.parametrize("field", ["vocab_size", "n_positions", "n_layer"])
def test_defect_11_the_configuration_accepts_nonsense(field):
    value = {"vocab_size": 1, "n_positions": 0, "n_layer": 0}[field]
    assert getattr(TheirConfig(**{field: value}), field) == value
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        tiny_config(**{field: value})


def test_defect_12_the_converter_is_not_in_the_wheel():
    # Ours is imagegpt.checkpoints.openai, which has its own tests.
    package = "transformers.models.imagegpt"
    assert importlib.util.find_spec(package) is not None
    for name in ("convert_imagegpt_original_tf2_to_pytorch", "convert_imagegpt_original_tf2_to_pt"):
        assert importlib.util.find_spec(f"{package}.{name}") is None


def test_defect_13_the_gain_of_the_norm_is_trained():
    # transformers 4.x multiplied by `self.weight.data`. The pinned version mended it; what the old line did:
    gain = torch.nn.Parameter(torch.ones(32))
    old = torch.randn(2, 32, requires_grad=True) * gain.data
    old.sum().backward()
    assert gain.grad is None

    ours = tiny_model(ImageGPTModel)
    theirs = reference_for(ours)
    for model in (ours, theirs):
        model(image_ids()).last_hidden_state.square().sum().backward()
    gains = [name for name, _ in ours.named_parameters() if "ln_" in name]
    assert len(gains) == 5
    for name in gains:
        gradient = ours.get_parameter(name).grad
        assert gradient.abs().max() > 1e-3
        assert largest_difference(gradient, theirs.get_parameter(name).grad) < 1e-5 * gradient.abs().max() * 10


def test_a_fresh_models_loss_is_not_a_defect_of_either():
    # Near ln(colours) for both schemes: a sanity check on the models these tests compare.
    model = ImageGPTForCausalImageModeling(tiny_config())
    assert model(image_ids(), labels=image_ids()).loss.item() == pytest.approx(math.log(16), abs=0.1)
