"""Saving and loading of every model class: counterpart of the tests of files in transformers' `ModelTesterMixin`."""

import re

import pytest
import torch
from every_model import CLASSES, EVERY_CLASS, EVERY_MODEL, batch_for, main_output, model_of
from safetensors.torch import load_file

from helpers import image_ids, largest_difference, tiny_config
from imagegpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel

HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


def assert_same_weights(a, b):
    """Both state dicts have the same names, dtypes and bits."""
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name


def loaded_strictly(model_class, *args, **options):
    """Load a model; missing, unexpected or mismatched weights fail the test."""
    model, info = model_class.from_pretrained(*args, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model.eval()


# --- Saving and loading ---


@EVERY_MODEL
def test_folder_round_trip(model_class, kind, tmp_path):
    model = model_of(model_class, kind)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").is_file()
    assert (tmp_path / "generation_config.json").is_file() == model.can_generate()
    loaded = loaded_strictly(model_class, tmp_path)
    assert_same_weights(model, loaded)
    assert all(parameter.is_contiguous() for parameter in loaded.parameters())
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    inputs = batch_for(model)
    assert largest_difference(main_output(loaded, inputs), main_output(model, inputs)) == 0


@EVERY_MODEL
def test_sharded_half_precision_round_trip(model_class, kind, tmp_path):
    model = model_of(model_class, kind, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded = loaded_strictly(model_class, tmp_path, dtype=torch.bfloat16)
    for name, weight in loaded.state_dict().items():
        assert weight.dtype == (torch.float32 if "ln_" in name else torch.bfloat16), name
        assert torch.equal(weight, model.state_dict()[name].to(weight.dtype)), name


@EVERY_CLASS
@HALVES
def test_half_precision_round_trip(model_class, dtype, tmp_path):
    model_of(model_class).save_pretrained(tmp_path / "float32")
    half = loaded_strictly(model_class, tmp_path / "float32", dtype=dtype)
    half.save_pretrained(tmp_path / "half")
    assert_same_weights(half, loaded_strictly(model_class, tmp_path / "half", dtype="auto"))
    assert_same_weights(half, loaded_strictly(model_class, tmp_path / "half", dtype=dtype))
    assert loaded_strictly(model_class, tmp_path / "half", dtype=torch.float32).dtype == torch.float32


@EVERY_MODEL
def test_load_from_state_dict_and_config(model_class, kind):
    model = model_of(model_class, kind)
    loaded = loaded_strictly(model_class, None, config=model.config, state_dict=model.state_dict())
    assert_same_weights(model, loaded)


@EVERY_CLASS
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_state_dict_by_torch_save(model_class, zipped, tmp_path):
    model = model_of(model_class)
    torch.save(model.state_dict(), tmp_path / "weights.bin", _use_new_zipfile_serialization=zipped)
    fresh = model_class(tiny_config(num_labels=3))
    fresh.load_state_dict(torch.load(tmp_path / "weights.bin", weights_only=True), strict=True)
    assert_same_weights(model, fresh)


@EVERY_CLASS
def test_folder_with_pytorch_model_bin(model_class, tmp_path):
    """Checkpoints older than safetensors."""
    model = model_of(model_class)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same_weights(model, loaded_strictly(model_class, tmp_path))


@EVERY_CLASS
def test_all_weights_are_written_and_none_is_shared(model_class, tmp_path):
    model = model_of(model_class)
    assert model.all_tied_weights_keys == {}
    assert not getattr(model, "_keys_to_ignore_on_save", None)
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    storages = [weight.untyped_storage().data_ptr() for weight in model.state_dict().values()]
    assert len(set(storages)) == len(storages)


@EVERY_CLASS
def test_requested_dtype_by_either_name(model_class, tmp_path):
    model_of(model_class).save_pretrained(tmp_path)
    for dtype in ("float16", "bfloat16", "float32", "auto", torch.float16, torch.bfloat16, torch.float32):
        new = model_class.from_pretrained(tmp_path, dtype=dtype)
        old = model_class.from_pretrained(tmp_path, torch_dtype=dtype)
        assert_same_weights(new, old)
        wanted = getattr(torch, dtype, torch.float32) if isinstance(dtype, str) else dtype
        assert new.base_model.h[0].mlp.c_fc.weight.dtype == wanted


# --- Between a body and its heads ---


@pytest.mark.parametrize("model_class", CLASSES[1:], ids=["generative", "classifier"])
def test_base_model_loads_into_head_model(model_class, tmp_path):
    body = model_of(ImageGPTModel)
    body.save_pretrained(tmp_path)
    model, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    head = "lm_head.weight" if model_class is ImageGPTForCausalImageModeling else "score.weight"
    assert info["missing_keys"] == {head}
    assert not info["unexpected_keys"]
    assert_same_weights(body, model.base_model)
    weight = model.state_dict()[head]
    assert 0 < weight.std() < 0.04  # initialised with the configured standard deviation of 0.02


@pytest.mark.parametrize("model_class", CLASSES[1:], ids=["generative", "classifier"])
def test_head_model_loads_into_base_model(model_class, tmp_path):
    model = model_of(model_class)
    model.save_pretrained(tmp_path)
    body, info = ImageGPTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert info["unexpected_keys"] == {"lm_head.weight" if "Causal" in model_class.__name__ else "score.weight"}
    assert_same_weights(body, model.base_model)


# --- What does not fit ---


def test_a_head_of_another_shape_is_refused(tmp_path, transformers_log):
    model_of(ImageGPTForImageClassification).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        ImageGPTForImageClassification.from_pretrained(tmp_path, num_labels=7)
    assert any("score.weight" in message for message in transformers_log)


@EVERY_CLASS
def test_ignore_mismatched_sizes(model_class, tmp_path):
    model = model_of(model_class)
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="mismatch"):
        model_class.from_pretrained(tmp_path, vocab_size=30)
    options = {"vocab_size": 30, "num_labels": 5, "ignore_mismatched_sizes": True}
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True, **options)
    wrong = {entry[0] for entry in info["mismatched_keys"]}
    expected = {name for name, weight in model.state_dict().items() if re.search("wte|lm_head|score", name)}
    assert wrong == expected
    weights = loaded.state_dict()
    for name, weight in weights.items():
        if name in expected:
            assert weight.isfinite().all()
            assert 0.01 < weight.std() < 0.03, name
        else:
            assert torch.equal(weight, model.state_dict()[name]), name
    assert loaded(image_ids())[0].isfinite().all()


# --- Fresh weights, default devices and dtypes ---


@EVERY_MODEL
@pytest.mark.parametrize("scheme", ["transformers", "openai"])
def test_missing_weights_are_initialized_like_new_ones(model_class, kind, scheme, monkeypatch):
    """Loading without any weights equals construction."""
    from transformers import initialization

    def normal_(tensor, mean=0.0, std=1.0, generator=None):  # the same draw for the same shape, in whatever order
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(tensor.numel()))
        if not getattr(tensor, "_is_hf_initialized", False):
            tensor.copy_(mean + std * noise)
        return tensor

    monkeypatch.setattr(initialization, "normal_", normal_)
    config = model_of(model_class, kind, init_scheme=scheme, add_cross_attention=True).config
    fresh = model_class(config)
    loaded = model_class.from_pretrained(None, config=config, state_dict={})
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    assert_same_weights(fresh, loaded)


@EVERY_MODEL
def test_load_weights_into_meta_model(model_class, kind):
    config = model_of(model_class, kind).config
    with torch.device("meta"):
        model = model_class(config).eval()
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert not list(model.buffers())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    model.init_weights()
    for name, weight in model.state_dict().items():
        assert weight.isfinite().all(), name
    inputs = batch_for(model)
    assert main_output(model, inputs).isfinite().all()


@EVERY_CLASS
def test_loading_under_a_default_device(model_class, tmp_path):
    model = model_of(model_class)
    model.save_pretrained(tmp_path)
    with torch.device("cpu"):
        assert_same_weights(model, loaded_strictly(model_class, tmp_path))
    with torch.device("meta"), pytest.raises(RuntimeError, match="meta device context"):
        model_class.from_pretrained(tmp_path)


@EVERY_CLASS
def test_the_default_dtype_decides_for_fresh_models_and_is_left_alone(model_class, tmp_path):
    config = tiny_config(num_labels=3)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert {p.dtype for p in model_class(config).parameters()} == {torch.float64}
    finally:
        torch.set_default_dtype(before)
    model_class(config).save_pretrained(tmp_path)
    model_class.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.get_default_dtype() == before


@EVERY_CLASS
def test_norms_are_kept_in_float32_by_modules_that_exist(model_class, tmp_path):
    for options in ({}, {"add_cross_attention": True}):
        model = model_of(model_class, **options)
        kept = set(model._keep_in_fp32_modules_strict)
        names = model.state_dict().keys()
        assert all(any(f".{module}." in f".{name}" for name in names) for module in kept)
        norms = {name for name in names if "ln_" in name}
        assert norms == {name for name in names if kept & set(name.split("."))}


@EVERY_CLASS
@HALVES
def test_norms_are_float32_in_every_half_precision_model(model_class, dtype, tmp_path):
    config = tiny_config(num_labels=3, add_cross_attention=True)
    model_class(config).save_pretrained(tmp_path)
    made = {
        "loaded": model_class.from_pretrained(tmp_path, dtype=dtype),
        "by configuration": model_class._from_config(config, dtype=dtype),
    }
    for how, model in made.items():
        for name, weight in model.state_dict().items():
            assert weight.dtype == (torch.float32 if "ln_" in name else dtype), f"{how}: {name}"
