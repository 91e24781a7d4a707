"""Offloading of weights to memory or disk with accelerate, on every model class."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model, infer_auto_device_map
from every_model import EVERY_CLASS, EVERY_MODEL, EVERY_MODEL_PARTLY_SLOW, batch_for, loss_of, main_output, model_of

from helpers import largest_difference

HALF_ON_DISK = {
    "wte": "cpu", "wpe": "cpu", "drop": "cpu", "h.0": "disk", "h.1": "cpu", "ln_f": "disk",
}  # fmt: skip


def places_for(model):
    """A device map with the base model's modules as given, and the head on disk."""
    if model.base_model is model:
        return dict(HALF_ON_DISK)
    head = "lm_head" if hasattr(model, "lm_head") else "score"
    return {**{f"transformer.{name}": place for name, place in HALF_ON_DISK.items()}, head: "disk"}


@EVERY_MODEL_PARTLY_SLOW
@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules:UserWarning")  # of any size
@pytest.mark.parametrize("file", ["safetensors", "bin"])
def test_load_with_disk_offload(model_class, kind, file, tmp_path):
    model = model_of(model_class, kind)
    if file == "safetensors":
        model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    else:
        model.config.save_pretrained(tmp_path / "model")
        torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    loaded = model_class.from_pretrained(
        tmp_path / "model", device_map=places_for(model), offload_folder=tmp_path / "offload"
    ).eval()
    assert loaded.hf_device_map == places_for(model)
    assert loaded.base_model.h[0].mlp.c_fc.weight.is_meta
    assert not loaded.base_model.h[1].mlp.c_fc.weight.is_meta
    inputs = batch_for(model)
    with torch.no_grad():
        assert torch.equal(loss_of(loaded, inputs), loss_of(model, inputs))
        assert torch.equal(main_output(loaded, inputs), main_output(model, inputs))
    loaded.save_pretrained(tmp_path / "again")
    again = model_class.from_pretrained(tmp_path / "again")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


@EVERY_CLASS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_load_with_disk_offload(model_class, dtype, tmp_path):
    """Regression: offloaded norms were loaded in half precision instead of float32."""
    model_of(model_class).save_pretrained(tmp_path / "model")
    whole = model_class.from_pretrained(tmp_path / "model", dtype=dtype).eval()
    loaded = model_class.from_pretrained(
        tmp_path / "model", dtype=dtype, device_map=places_for(whole), offload_folder=tmp_path / "offload"
    ).eval()
    inputs = batch_for(whole)
    with torch.no_grad():
        assert largest_difference(main_output(loaded, inputs), main_output(whole, inputs)) == 0


@EVERY_CLASS
@pytest.mark.parametrize("how", ["memory", "disk", "dispatch"])
def test_offload_after_construction(model_class, how, tmp_path):
    model, offloaded = model_of(model_class), model_of(model_class)
    if how == "memory":
        offloaded = cpu_offload(offloaded, execution_device=torch.device("cpu"))
    elif how == "disk":
        disk_offload(offloaded, tmp_path, execution_device=torch.device("cpu"))
    else:
        offloaded = dispatch_model(offloaded, places_for(model), main_device="cpu", offload_dir=tmp_path)
    assert offloaded.base_model.h[0].attn.c_attn.weight.is_meta
    inputs = batch_for(model)
    with torch.no_grad():
        assert torch.equal(main_output(offloaded, inputs), main_output(model, inputs))
        recorded = {"output_hidden_states": True, "use_cache": True}
        found, expected = offloaded(**inputs, **recorded), model(**inputs, **recorded)
        for a, b in zip(found.hidden_states, expected.hidden_states, strict=True):
            assert torch.equal(a, b)


@EVERY_MODEL
def test_device_map_does_not_split_blocks(model_class, kind):
    model = model_of(model_class, kind, n_layer=6)
    assert set(model._no_split_modules) <= {type(module).__name__ for module in model.modules()}
    block_bytes = sum(p.numel() * 4 for p in model.base_model.h[0].parameters())
    limits = {"cpu": int(3.5 * block_bytes), "disk": 10**9}
    places = infer_auto_device_map(model, max_memory=limits, no_split_module_classes=model._no_split_modules)
    assert set(places.values()) == {"cpu", "disk"}
    assert not any(".attn" in name or ".mlp" in name or ".ln_1" in name for name in places)
