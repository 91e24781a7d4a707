"""The configuration as in transformers' `ConfigTester`, and the parallel plans derived from it."""

import json

import torch
from every_model import EVERY_CLASS, model_of

from helpers import tiny_config
from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling

# Fields of every transformers configuration, with values other than the defaults.
COMMON = {
    "return_dict": False, "output_hidden_states": True, "output_attentions": True, "dtype": torch.float16,
    "chunk_size_feed_forward": 5, "architectures": ["ImageGPTModel"], "problem_type": "regression",
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "id2label": {0: "cat", 1: "dog"},
    "label2id": {"cat": 0, "dog": 1},
}  # fmt: skip


def test_common_fields_are_kept(tmp_path):
    config = ImageGPTConfig(**COMMON, attn_implementation="eager")
    config.save_pretrained(tmp_path)
    for kept in (config, ImageGPTConfig.from_pretrained(tmp_path, attn_implementation="eager")):
        assert {name: getattr(kept, name) for name in COMMON} == COMMON


def test_json_as_a_string_and_a_file(tmp_path):
    config = tiny_config(use_bias=False)
    assert json.loads(config.to_json_string())["n_embd"] == 32
    config.to_json_file(tmp_path / "config.json")
    assert ImageGPTConfig.from_json_file(tmp_path / "config.json").to_dict() == config.to_dict()


def test_a_folder_in_a_folder_and_values_that_overrule(tmp_path):
    config = tiny_config(num_labels=7)
    config.save_pretrained(tmp_path / "inner")
    loaded = ImageGPTConfig.from_pretrained(tmp_path, subfolder="inner")
    assert loaded.to_dict() == config.to_dict()
    changed = ImageGPTConfig.from_pretrained(tmp_path, subfolder="inner", n_layer=5)
    assert changed.n_layer == 5
    assert {**changed.to_dict(), "n_layer": 2} == config.to_dict()


def test_common_names_for_sizes_can_be_read_and_set():
    config = tiny_config()
    names = {"hidden_size": "n_embd", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}
    for common, ours in {**names, "max_position_embeddings": "n_positions"}.items():
        assert getattr(config, common) == getattr(config, ours)
        setattr(config, common, 64)
        assert getattr(config, ours) == 64
    assert ImageGPTConfig(hidden_size=48, num_attention_heads=3).n_embd == 48


def test_labels_follow_their_number(transformers_log):
    config = ImageGPTConfig(num_labels=5)
    assert len(config.id2label) == len(config.label2id) == 5
    config.num_labels = 3
    assert len(config.id2label) == len(config.label2id) == 3
    assert not transformers_log
    assert not ImageGPTConfig.sub_configs  # no configuration of a part, so nothing composite
    assert config.get_text_config() is config


@EVERY_CLASS
def test_each_entry_of_the_tensor_parallel_plan_is_a_module(model_class):
    model = model_of(model_class)
    modules = dict(model.named_modules())
    assert len(model.tp_plan) == 4
    for pattern in model.tp_plan:
        matches = [pattern.replace("*", str(layer)) in modules for layer in range(model.config.n_layer)]
        assert all(matches), pattern
    shared = {name for name in model.tp_plan if "wte" in name or "lm_head" in name}
    assert not shared  # embedding and head are whole on every device


def test_resized_weights_are_not_reinitialized():
    model = model_of(ImageGPTForCausalImageModeling)
    model.resize_token_embeddings(27)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.post_init()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@EVERY_CLASS
def test_capability_flags(model_class):
    """Capability flags of transformers; other tests cover each capability."""
    assert model_class.can_generate() == (model_class is ImageGPTForCausalImageModeling)
    assert not model_class.is_remote_code()
    for flag in ("_supports_sdpa", "_supports_flex_attn", "_supports_flash_attn", "_supports_attention_backend",
                 "_can_compile_fullgraph", "supports_gradient_checkpointing"):  # fmt: skip
        assert getattr(model_class, flag), flag
    assert not getattr(model_class, "_is_stateful", False)
