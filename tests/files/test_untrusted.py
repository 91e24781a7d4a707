"""Files of a model folder may not refer to code, other folders or other models; arguments of the caller may."""

import json
import shutil

import pytest
from packaging.version import Version
from transformers.integrations.peft import MIN_PEFT_VERSION

from helpers import image_ids, largest_difference, tiny_model
from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel
from imagegpt.checkpoints.loading import load_config, load_model
from imagegpt.files.untrusted import check_config

CLASSES = (ImageGPTModel, ImageGPTForCausalImageModeling, ImageGPTForImageClassification)


@pytest.fixture
def folder(tmp_path):
    """A folder with a model."""
    tiny_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(path, **fields):
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **fields}))


def refused(load, message):
    with pytest.raises(ValueError, match=message) as caught:
        load()
    assert "\n" not in str(caught.value)


ATTENTION = (
    "and a file may only choose eager, sdpa, flex_attention, kernels: remove the key, or pass attn_implementation"
)
CODE = "refers to code outside this package: remove the key, or pass {} to from_pretrained if you trust"
KEYS = [
    ("attn_implementation", "evil/kernel", f"attn_implementation is 'evil/kernel', {ATTENTION}"),
    ("attn_implementation", {"": "evil/kernel:run"}, f"attn_implementation is 'evil/kernel:run', {ATTENTION}"),
    (
        "_attn_implementation",
        "kernels-community/x@v1",
        f"_attn_implementation is 'kernels-community/x@v1', {ATTENTION}",
    ),
    ("attn_implementation", "flash_attention_2", ATTENTION),  # which is fetched where it is not installed
    ("quantization_config", {"quant_method": "bitsandbytes"}, CODE.format("quantization_config")),
    ("auto_map", {"AutoModel": "evil--code.Model"}, CODE.format("trust_remote_code")),
    ("trust_remote_code", True, CODE.format("trust_remote_code")),
    ("fusion_config", {"patch_embeddings": True}, "fusion_config is not supported by ImageGPT: remove the key"),
    ("kernel_config", {"kernel_mapping": {}}, "kernel_config is not supported by ImageGPT: remove the key"),
    ("experts_implementation", "evil/kernel", "experts_implementation is not supported by ImageGPT: remove the key"),
    ("per_layer_config", {"0": {"n_inner": 8}}, "per_layer_config is not supported by ImageGPT: remove the key"),
    ("distributed_config", {"tp_plan": "auto"}, "distributed_config is not supported by ImageGPT: remove the key"),
    ("configuration_files", ["config.4.0.0.json"], "configuration_files refers to other files, which are not read"),
    ("transformers_weights", "../model.safetensors", "transformers_weights is .*: only files in the same"),
]


@pytest.mark.parametrize(("key", "value", "message"), KEYS)
def test_config_keys_that_run_foreign_code_are_refused(folder, key, value, message):
    change(folder / "config.json", **{key: value})
    for model_class in CLASSES:
        refused(lambda made=model_class: made.from_pretrained(folder), f"config.json: .*{message}")
    refused(lambda: load_config(folder), message)
    refused(lambda: load_model(folder), message)
    if "attn" in key:
        refused(lambda: ImageGPTConfig.from_pretrained(folder), message)


def test_config_keys_that_run_foreign_code_are_refused_on_the_hub(folder, tmp_path):
    change(folder / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    cached = tmp_path / "cache" / "models--owner--tiny"
    shutil.copytree(folder, cached / "snapshots" / ("a" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    options = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    refused(
        lambda: ImageGPTModel.from_pretrained("owner/tiny", **options),
        "config.json: quantization_config refers to code",
    )
    refused(
        lambda: ImageGPTModel.from_pretrained(folder, config=folder / "config.json"), "quantization_config refers to"
    )


def test_arguments_of_the_caller_may_allow_foreign_code(folder):
    change(folder / "config.json", attn_implementation="evil/kernel", auto_map={"AutoModel": "evil--code.Model"})
    asked = {"attn_implementation": "eager", "trust_remote_code": True}
    model = ImageGPTForCausalImageModeling.from_pretrained(folder, **asked)
    assert model.config._attn_implementation == "eager"
    fields = {"quantization_config": {"quant_method": "x"}, "attn_implementation": "a/b"}
    check_config(fields, {"quantization_config": object(), "attn_implementation": "a/b"})
    assert ImageGPTConfig.from_pretrained(folder, attn_implementation="eager")._attn_implementation == "eager"


def test_ordinary_folders_load(folder):
    expected = ImageGPTForCausalImageModeling.from_pretrained(folder)
    ordinary = {
        "_name_or_path": "openai/imagegpt-small", "attn_implementation": "eager", "auto_map": {},
        "quantization_config": None, "_attn_implementation_autoset": True, "task_specific_params": None, "my_note": [1],
        "torch_dtype": "float32",
        "transformers_weights": None, "trust_remote_code": False, "label2id": {"a": 0}, "id2label": {"0": "a"},
    }  # fmt: skip
    change(folder / "config.json", **ordinary)
    for load in (ImageGPTForCausalImageModeling.from_pretrained, load_model):
        assert largest_difference(load(folder)(image_ids()).logits, expected(image_ids()).logits) < 1e-5


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("away", ["../other/{}", "/{}", "a/../../{}", "..\\{}", "C:\\{}", "C:{}"])
def test_a_weight_index_refers_only_to_its_own_folder(folder, tmp_path, kind, away):
    tiny_model().save_pretrained(folder, max_shard_size="50kB")
    shutil.copytree(folder, tmp_path / "other")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first = index["weight_map"]["transformer.wte.weight"]
    moved = {name: away.format(first) if file == first else file for name, file in index["weight_map"].items()}
    path.unlink()
    name = path.name if kind == "safetensors" else "pytorch_model.bin.index.json"
    change(folder / name, **{**index, "weight_map": moved})
    for load in (ImageGPTForCausalImageModeling.from_pretrained, load_model):
        refused(
            lambda load=load: load(folder), rf"{name}: weight_map names '.*: only files in the same folder are read"
        )


def test_sharded_weights_load(folder):
    tiny_model().save_pretrained(folder, max_shard_size="50kB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    load_model(folder)
    (folder / "part").mkdir()
    for path in folder.glob("model-*.safetensors"):
        path.rename(folder / "part" / path.name)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = {name: f"part/{file}" for name, file in index["weight_map"].items()}
    change(folder / "model.safetensors.index.json", **index)
    load_model(folder)


def test_an_adapter_without_a_model_is_refused(folder, tmp_path):
    pytest.importorskip("peft")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    change(adapter / "adapter_config.json", base_model_name_or_path=str(folder), peft_type="LORA")
    for model_class in CLASSES:
        refused(
            lambda made=model_class: made.from_pretrained(adapter),
            r"adapter_config.json: it is an adapter of '.*', and its folder contains no model: load a model that",
        )


@pytest.mark.parametrize(
    "fields", [{"megatron_config": {"a": 1}}, {"megatron_core": "evil"}, {"adapters": {"a": "evil/adapter"}}]
)
def test_an_adapter_that_runs_foreign_code_is_refused(folder, fields):
    change(folder / "adapter_config.json", peft_type="LORA", **fields)
    refused(lambda: load_model(folder), rf"adapter_config.json: {next(iter(fields))} refers to code or adapters")


def test_an_ordinary_adapter_with_its_model_loads(folder):
    peft = pytest.importorskip("peft")
    if Version(peft.__version__) < Version(MIN_PEFT_VERSION):
        pytest.skip(f"transformers wants peft {MIN_PEFT_VERSION}")
    lora = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    model = ImageGPTForCausalImageModeling.from_pretrained(folder)
    model.add_adapter(lora)
    model.save_pretrained(folder)
    assert (folder / "adapter_config.json").is_file()
    assert json.loads((folder / "adapter_config.json").read_text())["megatron_core"] == "megatron.core"
    assert ImageGPTForCausalImageModeling.from_pretrained(folder).peft_config["default"].r == 2
