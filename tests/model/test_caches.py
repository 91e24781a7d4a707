"""Caches of every kind: logits equal those of one call over the whole image.

A cache that is wrong by a position is hard to see in an image and easy to see here.
"""

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

import oracle
from helpers import image_ids, largest_difference, tiny_config, tiny_model
from imagegpt import ImageGPTForImageClassification, ImageGPTModel
from imagegpt.model.cache import CACHE_ARGUMENT

EAGER_AND_SDPA = pytest.mark.parametrize("backend", ["eager", "sdpa"])
CHUNKS = {"pixel by pixel": [1] * 16, "prompt then pixels": [8] + [1] * 8, "uneven": [3, 1, 7, 5], "at once": [16]}


def make_cache(kind, config):
    return {
        "dynamic": lambda: DynamicCache(config=config),
        "dynamic without config": DynamicCache,
        "static": lambda: StaticCache(config=config, max_cache_len=16),
        "static, larger": lambda: StaticCache(config=config, max_cache_len=29),
        "encoder-decoder": lambda: EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config)),
        "legacy": tuple,
        "default": lambda: None,
    }[kind]()


def feed(model, ids, chunks, cache, **inputs):
    """Logits of all positions, fed in chunks through one cache, and the cache."""
    logits, start = [], 0
    for length in chunks:
        part = ids[:, start : start + length]
        sliced = {k: v[:, : start + length] if k == "attention_mask" else v for k, v in inputs.items()}
        outputs = model(part, past_key_values=cache, use_cache=True, **sliced)
        logits.append(outputs.logits)
        cache = outputs.past_key_values
        start += length
    return torch.cat(logits, dim=1), cache


@EAGER_AND_SDPA
@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize(
    "kind", ["dynamic", "dynamic without config", "static", "static, larger", "encoder-decoder", "legacy", "default"]
)
def test_cached_logits_equal_uncached(kind, chunks, backend):
    model = tiny_model(backend=backend, dtype=torch.float64)
    ids = image_ids()
    cached, cache = feed(model, ids, CHUNKS[chunks], make_cache(kind, model.config))
    assert largest_difference(cached, model(ids, use_cache=False).logits) < 1e-12
    if kind == "legacy":
        assert isinstance(cache, tuple)
        assert [[states.shape for states in layer] for layer in cache] == [[(2, 4, 16, 8)] * 2] * 2
    else:
        assert int(cache.get_seq_length()) == 16


@EAGER_AND_SDPA
@pytest.mark.parametrize("kind", ["dynamic", "static", "legacy"])
def test_left_padding_with_cache(kind, backend):
    model = tiny_model(backend=backend, dtype=torch.float64)
    ids = image_ids()
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[0, :3] = 0
    cached, _ = feed(model, ids, CHUNKS["prompt then pixels"], make_cache(kind, model.config), attention_mask=mask)
    whole = model(ids, attention_mask=mask, use_cache=False).logits
    assert largest_difference(cached[mask.bool()], whole[mask.bool()]) < 1e-12


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_cache_is_extended_in_place_and_returned(kind):
    model = tiny_model()
    cache = make_cache(kind, model.config)
    outputs = model(image_ids(pixels=4), past_key_values=cache)
    assert outputs.past_key_values is cache
    assert int(cache.get_seq_length()) == 4


def test_legacy_tuples_are_returned_as_tuples_and_not_modified():
    model = tiny_model()
    ids = image_ids()
    past = model(ids[:, :5], past_key_values=()).past_key_values
    assert isinstance(past, tuple)
    before = [[states.clone() for states in layer] for layer in past]
    longer = model(ids[:, 5:7], past_key_values=past).past_key_values
    assert longer[0][0].shape[2] == 7
    for layer, kept in zip(past, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(layer, kept, strict=True))


def test_use_cache_decides_what_is_returned():
    model = tiny_model()
    assert model(image_ids(), use_cache=False).past_key_values is None
    assert isinstance(model(image_ids()).past_key_values, DynamicCache)  # config.use_cache
    model.config.use_cache = False
    assert model(image_ids()).past_key_values is None
    assert isinstance(model(image_ids(), use_cache=True).past_key_values, DynamicCache)


@pytest.mark.parametrize("model_class", [ImageGPTModel, ImageGPTForImageClassification])
def test_every_model_class_returns_a_cache(model_class):
    outputs = tiny_model(model_class)(image_ids(), use_cache=True)
    assert outputs.past_key_values.get_seq_length() == 16


@pytest.mark.parametrize(
    "kind",
    [
        "dynamic",
        "static",
        "legacy",
    ],
)
def test_input_past_last_position_is_an_error(kind):
    model = tiny_model()
    cache = make_cache(kind, model.config)
    cache = model(image_ids(), past_key_values=cache).past_key_values
    with pytest.raises(ValueError, match=r"17.* 16 positions"):
        model(image_ids(pixels=1), past_key_values=cache)


# --- Crops ---


def test_crop_removes_last_pixels():
    """As assisted decoding does with rejected drafts; transformers expects a negative number of positions."""
    model = tiny_model()
    ids = image_ids()
    cache = model(image_ids(seed=9)[:, :4]).past_key_values
    cache.crop(-4)
    cache = model(ids[:, :6], past_key_values=cache).past_key_values
    cache = model((ids[:, 6:10] + 1) % 16, past_key_values=cache).past_key_values
    cache.crop(-4)
    assert cache.get_seq_length() == 6
    assert largest_difference(model(ids[:, 6:], past_key_values=cache).logits, model(ids).logits[:, 6:]) < 1e-5


def test_static_cache_can_be_reset_and_used_for_another_image():
    model = tiny_model()
    cache = StaticCache(config=model.config, max_cache_len=16)
    model(image_ids(seed=3), past_key_values=cache)
    cache.reset()
    cached, _ = feed(model, image_ids(), CHUNKS["prompt then pixels"], cache)
    assert largest_difference(cached, model(image_ids()).logits) < 1e-5


# --- Encoder and decoder ---


def encoder_inputs(dtype=torch.float32):
    encoded = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)
    return {
        "encoder_hidden_states": encoded,
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 0, 1]]),
    }


@EAGER_AND_SDPA
@pytest.mark.parametrize("kind", ["default", "encoder-decoder", "dynamic", "static"])
@pytest.mark.parametrize("chunks", ["pixel by pixel", "uneven"])
def test_cross_attention_with_cache_matches_reference(chunks, kind, backend):
    model = tiny_model(backend=backend, dtype=torch.float64, add_cross_attention=True)
    inputs = encoder_inputs(torch.float64)
    cached, _ = feed(model, image_ids(), CHUNKS[chunks], make_cache(kind, model.config), **inputs)
    exact = oracle.logits(
        model,
        image_ids(),
        encoded=inputs["encoder_hidden_states"],
        encoder_allowed=inputs["encoder_attention_mask"].bool(),
    )
    assert largest_difference(cached, torch.as_tensor(exact)) < 1e-12


def test_encoder_keys_are_cached_once_and_reused():
    # The reference's cross cache held every key twice.
    model = tiny_model(add_cross_attention=True)
    calls = []
    for block in model.transformer.h:
        block.crossattention.c_attn.register_forward_hook(lambda *args: calls.append(1))
    _, cache = feed(model, image_ids(), CHUNKS["pixel by pixel"], None, **encoder_inputs())
    assert isinstance(cache, EncoderDecoderCache)
    assert len(calls) == 2  # once a block, for the first pixel
    for layer in cache.cross_attention_cache.layers:
        assert layer.keys.shape == layer.values.shape == (2, 4, 7, 8)
    assert cache.self_attention_cache.get_seq_length() == 16


def test_cross_attention_model_without_an_encoder_caches_its_own_keys():
    model = tiny_model(add_cross_attention=True, dtype=torch.float64)
    cached, _ = feed(model, image_ids(), CHUNKS["uneven"], None)
    assert largest_difference(cached, model(image_ids(), use_cache=False).logits) < 1e-12


# --- Pruned heads ---


@pytest.mark.parametrize("kind", ["dynamic", "static", "legacy"])
def test_cache_of_a_model_with_pruned_heads(kind):
    model = tiny_model(dtype=torch.float64)
    model.prune_heads({0: [1], 1: [0, 2, 3]})
    cached, cache = feed(model, image_ids(), CHUNKS["uneven"], make_cache(kind, model.config))
    assert largest_difference(cached, model(image_ids(), use_cache=False).logits) < 1e-12
    keys = [layer[0] if kind == "legacy" else layer.keys for layer in (cache if kind == "legacy" else cache.layers)]
    assert [k.shape[1] for k in keys] == [3, 1]


# --- Whole images (issue 2, done when 4) ---


def greedy(model, kind, batch=2):
    """Whole greedy images from a loop over `forward`, without `generate`."""
    ids = torch.full((batch, 1), model.config.sos_token_id)
    ids = torch.cat([ids, torch.arange(batch)[:, None]], dim=1)  # different first pixels
    cache, new = make_cache(kind, model.config) if kind != "none" else None, ids
    with torch.no_grad():
        while ids.shape[1] <= model.config.n_positions:
            if kind == "none":
                logits = model(ids, use_cache=False).logits
            else:
                outputs = model(new, past_key_values=cache, use_cache=True)
                logits, cache = outputs.logits, outputs.past_key_values
            new = logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, new], dim=1)
    return ids


@pytest.mark.parametrize(
    ("backend", "num_pixels"),
    [
        ("eager", 36),
        ("sdpa", 36),
        pytest.param(
            "flex_attention",
            16,  # flex compiles, and for several lengths
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_images_do_not_depend_on_cache_or_backend(seed, backend, num_pixels):
    torch.compiler.reset()
    expected = greedy(tiny_model(seed=seed, n_positions=num_pixels, n_layer=3, backend="eager"), "none")
    assert expected.shape == (2, num_pixels + 1)
    assert len(expected[:, 1:].unique()) > 4  # not an image of one colour
    model = tiny_model(seed=seed, n_positions=num_pixels, n_layer=3, backend=backend)
    kinds = ["none", "dynamic", "static, whole", "legacy"]
    for kind in kinds:
        made = greedy_static(model) if kind == "static, whole" else greedy(model, kind)
        assert torch.equal(made, expected), f"{kind} with {backend}"


def greedy_static(model):
    """Like `greedy`, with a static cache larger than the image."""
    cache = StaticCache(config=model.config, max_cache_len=40)
    ids = torch.tensor([[16, 0], [16, 1]])
    new = ids
    with torch.no_grad():
        while ids.shape[1] <= model.config.n_positions:
            new = model(new, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, new], dim=1)
    return ids


@pytest.mark.slow
def test_flex_attention_equals_eager_attention():
    torch.compiler.reset()  # torch 2.13 fails to recompile flex's padding mask for a length it has made dynamic
    model = tiny_model(n_positions=36)
    ids = image_ids(config=model.config)
    mask = torch.ones(2, 36, dtype=torch.long)
    mask[0, :7] = 0
    rows = mask.bool()
    with torch.no_grad():
        for options in ({}, {"attention_mask": mask}):
            model.set_attn_implementation("eager")
            eager = model(ids, **options).logits
            model.set_attn_implementation("flex_attention")
            flex = model(ids, **options).logits
            assert largest_difference(eager[rows], flex[rows]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "dynamic",
        "static, larger",
    ],
)
def test_flex_attention_with_a_cache(kind):
    """flex_attention calls the mask function inside its kernel, after the cache has counted the new positions.

    transformers' static cache counts in place, in the very tensor that the mask function holds: in its own models, a
    query then sees one slot that is still empty. Only the mask of blocks is computed in time.
    """
    torch.compiler.reset()
    model = tiny_model(backend="flex_attention")
    with torch.no_grad():
        cached, _ = feed(model, image_ids(), CHUNKS["prompt then pixels"], make_cache(kind, model.config))
    assert largest_difference(cached, tiny_model(backend="eager")(image_ids()).logits) < 1e-5


def test_tiny_config_is_causal():
    assert tiny_config().is_causal  # the tests above mean nothing otherwise


def test_cache_argument_has_two_names():
    """transformers renamed the argument in 5.24; our models accept both names with every version."""
    model = tiny_model()
    ids = image_ids(2)
    expected = model(ids).logits
    for name in ("past_key_values", "cache"):
        cache = DynamicCache(config=model.config)
        parts = [model(part, **{name: cache}).logits for part in (ids[:, :5], ids[:, 5:])]
        assert largest_difference(torch.cat(parts, dim=1), expected) < 1e-5
        assert cache.get_seq_length() == ids.shape[1]
    assert model(ids, cache=None, past_key_values=DynamicCache(config=model.config)).logits.shape == expected.shape
    with pytest.raises(ValueError, match=r"^cache and past_key_values were both given"):
        model(ids, cache=DynamicCache(), past_key_values=DynamicCache())


def test_output_uses_installed_version_cache_name():
    assert CACHE_ARGUMENT in tiny_model()(image_ids(2), use_cache=True)
