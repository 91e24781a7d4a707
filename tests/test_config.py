"""The configuration: fields and defaults of transformers, files that both libraries read, and invalid values."""

import json

import pytest
from transformers.models.imagegpt.configuration_imagegpt import ImageGPTConfig as ReferenceConfig

from helpers import tiny_config
from imagegpt import ImageGPTConfig

OURS_ALONE = {"use_bias", "is_causal", "init_scheme", "shift_inputs", "pruned_heads"}


def own_fields(config):
    return {name for name in type(config).__annotations__ if name in config.to_dict()}


def test_fields_and_defaults_of_the_reference():
    ours, theirs = ImageGPTConfig().to_dict(), ReferenceConfig().to_dict()
    assert {name: ours.get(name, "missing") for name in theirs} == theirs
    assert own_fields(ReferenceConfig()) <= own_fields(ImageGPTConfig())


def test_our_additional_fields():
    assert own_fields(ImageGPTConfig()) - own_fields(ReferenceConfig()) <= OURS_ALONE
    config = ImageGPTConfig()
    defaults = (config.use_bias, config.is_causal, config.init_scheme, config.shift_inputs, config.pruned_heads)
    assert defaults == (True, True, "transformers", False, None)


def test_model_type_and_attribute_names_match_the_reference():
    assert ImageGPTConfig.model_type == ReferenceConfig.model_type == "imagegpt"
    assert ImageGPTConfig.attribute_map == ReferenceConfig.attribute_map
    config = tiny_config()
    names = (config.hidden_size, config.max_position_embeddings, config.num_attention_heads, config.num_hidden_layers)
    assert names == (32, 16, 4, 2)


# --- Files ---


def test_the_reference_reads_our_file(tmp_path):
    tiny_config(n_inner=20, scale_attn_by_inverse_layer_idx=True, layer_norm_epsilon=1e-3).save_pretrained(tmp_path)
    theirs = ReferenceConfig.from_pretrained(tmp_path)
    assert (theirs.n_embd, theirs.n_inner, theirs.vocab_size) == (32, 20, 17)
    assert theirs.scale_attn_by_inverse_layer_idx is True
    assert theirs.layer_norm_epsilon == 1e-3


def test_we_read_the_file_of_the_reference(tmp_path):
    ReferenceConfig(n_embd=48, n_head=6, reorder_and_upcast_attn=True, num_labels=7).save_pretrained(tmp_path)
    ours = ImageGPTConfig.from_pretrained(tmp_path)
    assert (ours.n_embd, ours.n_head, ours.num_labels) == (48, 6, 7)
    assert ours.reorder_and_upcast_attn is True
    assert (ours.use_bias, ours.is_causal, ours.shift_inputs) == (True, True, False)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_bias": False, "is_causal": False, "init_scheme": "openai"},
        {"shift_inputs": True, "architectures": ["ImageGPTForImageClassification"]},
        {"pruned_heads": {0: [1, 3], 1: [0]}},
        {"num_labels": 3, "problem_type": "regression"},
        {"id2label": {0: "cat", 1: "dog", 2: "fish"}},
    ],
    ids=lambda options: next(iter(options), "default"),
)
def test_save_and_load_round_trip(options, tmp_path):
    config = tiny_config(**options)
    config.save_pretrained(tmp_path)
    assert ImageGPTConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert ImageGPTConfig.from_json_file(tmp_path / "config.json").to_diff_dict() == config.to_diff_dict()


CLASSIFIER, GENERATOR = ["ImageGPTForImageClassification"], ["ImageGPTForCausalImageModeling"]


@pytest.mark.parametrize(
    ("options", "model_type"),
    [
        ({}, "imagegpt"),
        ({"architectures": CLASSIFIER}, "imagegpt"),
        ({"architectures": GENERATOR, "shift_inputs": True}, "imagegpt"),  # a generator has no use for it
        ({"architectures": CLASSIFIER, "shift_inputs": True}, "imagegpt_extended"),
        ({"architectures": GENERATOR, "is_causal": False}, "imagegpt_extended"),
        ({"is_causal": False}, "imagegpt_extended"),
    ],
)
def test_model_type_tells_whether_transformers_computes_the_same(options, model_type, tmp_path, transformers_log):
    tiny_config(**options).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == model_type
    again = ImageGPTConfig.from_pretrained(tmp_path)
    assert (type(again), again.model_type) == (ImageGPTConfig, "imagegpt")
    assert not transformers_log  # of an unknown type


def test_pruned_heads_have_string_keys_in_json_and_numbers_here(tmp_path):
    tiny_config(pruned_heads={1: [2, 0]}).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["pruned_heads"] == {"1": [0, 2]}
    assert ImageGPTConfig.from_pretrained(tmp_path).pruned_heads == {1: [0, 2]}


def test_a_file_of_transformers_4_is_read(tmp_path):
    """The first lines of openai/imagegpt-small's config.json, from transformers 4.15, with its additional fields."""
    fields = {
        "activation_function": "quick_gelu", "architectures": ["ImageGPTForCausalImageModeling"], "attn_pdrop": 0.1,
        "embd_pdrop": 0.1, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "imagegpt",
        "n_embd": 512, "n_head": 8, "n_inner": None, "n_layer": 24, "n_positions": 1024,
        "reorder_and_upcast_attn": False, "resid_pdrop": 0.1, "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True, "tie_word_embeddings": False, "torch_dtype": "float32",
        "transformers_version": "4.12.0.dev0", "use_cache": True, "vocab_size": 513,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = ImageGPTConfig.from_pretrained(tmp_path)
    assert (config.n_layer, config.n_embd, config.shift_inputs) == (24, 512, False)


def test_dict_round_trip():
    config = tiny_config(shift_inputs=True, pruned_heads={0: [1]})
    assert ImageGPTConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


# --- Refusals ---

REFUSED = [
    ({"n_positions": 0}, "n_positions"),
    ({"n_positions": -4}, "n_positions"),
    ({"n_embd": 0}, "n_embd"),
    ({"n_layer": 0}, "n_layer"),
    ({"n_layer": -1}, "n_layer"),
    ({"n_head": 0}, "n_head"),
    ({"n_head": -2}, "n_head"),
    ({"n_embd": 30}, "n_embd is 30 and n_head is 4"),
    ({"n_head": 3}, "n_head"),
    ({"n_inner": 0}, "n_inner"),
    ({"n_inner": -1}, "n_inner"),
    ({"vocab_size": 1}, "vocab_size"),
    ({"vocab_size": 2}, "vocab_size"),
    ({"vocab_size": 0}, "vocab_size"),
    ({"vocab_size": -513}, "vocab_size"),
    ({"resid_pdrop": 1.0}, "resid_pdrop"),
    ({"resid_pdrop": -0.1}, "resid_pdrop"),
    ({"embd_pdrop": 1}, "embd_pdrop"),
    ({"attn_pdrop": 1.5}, "attn_pdrop"),
    ({"attn_pdrop": float("nan")}, "attn_pdrop"),
    ({"layer_norm_epsilon": 0.0}, "layer_norm_epsilon"),
    ({"layer_norm_epsilon": -1e-5}, "layer_norm_epsilon"),
    ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon"),
    ({"initializer_range": 0.0}, "initializer_range"),
    ({"initializer_range": -0.02}, "initializer_range"),
    ({"tie_word_embeddings": True}, "tie_word_embeddings"),
    ({"activation_function": "quickgelu"}, "activation_function"),
    ({"activation_function": ""}, "activation_function"),
    ({"init_scheme": "xavier"}, "init_scheme"),
    ({"n_embd": "32"}, "n_embd"),
    ({"n_layer": 2.0}, "n_layer"),
    ({"n_head": None}, "n_head"),
    ({"use_bias": "yes"}, "use_bias"),
    ({"is_causal": None}, "is_causal"),
    ({"activation_function": 3}, "activation_function"),
    ({"pruned_heads": {2: [0]}}, "pruned_heads"),
    ({"pruned_heads": {0: [4]}}, "pruned_heads"),
    ({"pruned_heads": {0: [-1]}}, "pruned_heads"),
    ({"pruned_heads": {0: [0, 1, 2, 3]}}, "pruned_heads"),
    ({"pruned_heads": {"first": [0]}}, "pruned_heads"),
]


@pytest.mark.parametrize(("options", "named"), REFUSED, ids=lambda value: str(value)[:40])
def test_invalid_values_are_one_sentence_naming_the_field(options, named):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below, for several things
        tiny_config(**options)
    message = str(error.value)
    assert named in message
    assert "\n" not in message
    assert "Traceback" not in message
    assert len(message) < 600


def test_the_message_contains_the_value():
    with pytest.raises(ValueError, match="n_layer is -7: it must be an integer from 1 to 1,024"):
        tiny_config(n_layer=-7)


def test_invalid_values_in_a_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "imagegpt", "vocab_size": 1}))
    with pytest.raises(ValueError, match="vocab_size is 1: it must be an integer from 3 to 65,537"):
        ImageGPTConfig.from_pretrained(tmp_path)


# --- Named sizes ---


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("small", (24, 512, 8, 1024)),
        ("medium", (36, 1024, 8, 1024)),
        ("large", (48, 1536, 16, 1024)),
        ("xl", (60, 3072, 16, 4096)),
    ],
)
def test_named_sizes_match_the_paper(name, shape):
    config = ImageGPTConfig.from_size(name)
    assert (config.n_layer, config.n_embd, config.n_head, config.n_positions) == shape
    assert config.vocab_size == 513


def test_named_sizes_take_overrides():
    config = ImageGPTConfig.from_size("large", n_positions=48 * 48, use_bias=False)
    assert (config.n_positions, config.n_embd, config.use_bias) == (2304, 1536, False)


def test_an_unknown_size_lists_the_known_ones():
    with pytest.raises(ValueError, match="'tiny': choose one of small, medium, large, xl"):
        ImageGPTConfig.from_size("tiny")


# --- Derived values ---


def test_derived_values():
    config = tiny_config()
    assert (config.num_colors, config.sos_token_id, config.inner_size) == (16, 16, 128)
    assert tiny_config(n_inner=20).inner_size == 20
    assert tiny_config(pruned_heads={1: [0, 2]}).kept_heads(1) == [1, 3]
    assert tiny_config(pruned_heads={1: [0, 2]}).kept_heads(0) == [0, 1, 2, 3]
