"""Conversion from and to OpenAI's variables: same outputs as the original, bit-exact round trips."""

import re

import numpy as np
import pytest
import torch
from transformers.models.imagegpt.modeling_imagegpt import ImageGPTForCausalImageModeling as Reference

from imagegpt import ColorPalette, ImageGPTForCausalImageModeling, ImageGPTForImageClassification
from imagegpt.checkpoints import conversion
from imagegpt.checkpoints.openai import from_openai, to_openai
from imagegpt.checkpoints.tensor_bundle import read_bundle, write_bundle
from imagegpt.config import ImageGPTConfig
from imagegpt.model.losses import with_start_token
from openai_oracle import forward, random_variables


def built(variables, **options):
    found = from_openai(variables, **options)
    model = ImageGPTForCausalImageModeling(found.config)
    model.load_state_dict(found.weights)
    return found, model.double().eval()


@pytest.mark.parametrize("bert", [False, True])
@pytest.mark.parametrize("biases", [False, True])
def test_every_layer_matches_the_original(bert, biases):
    variables = random_variables(bert=bert)
    found, model = built(variables, biases=biases)
    config = found.config
    assert (config.n_layer, config.n_head, config.n_embd, config.n_positions, config.num_colors) == (3, 2, 8, 16, 11)
    assert config.is_causal is not bert
    ids = torch.randint(11, (4, 16), generator=torch.Generator().manual_seed(0))
    hidden = np.random.default_rng(0).random((4, 16)) < 0.4 if bert else None
    streams, logits = forward(variables, ids.numpy(), hidden)
    if bert:
        embeddings = model.transformer.wte(ids).masked_fill(torch.from_numpy(hidden).unsqueeze(-1), 0)
        given = {"inputs_embeds": embeddings}
    else:
        given = {"input_ids": with_start_token(ids, config.sos_token_id)}
    with torch.no_grad():
        out = model(**given, output_hidden_states=True)
    np.testing.assert_allclose(out.logits.numpy(), logits, rtol=0, atol=1e-5)
    for layer, stream in enumerate(streams[:-1]):
        np.testing.assert_allclose(out.hidden_states[layer].numpy(), stream, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bert", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_openai_round_trip_is_bit_exact(bert, dtype):
    kind = "float32" if dtype == "bfloat16" else dtype
    variables = {name: array.astype(kind) for name, array in random_variables(bert=bert, classes=5).items()}
    found = from_openai(variables)
    assert found.classifier.shape == (5, 8)
    weights = found.weights | {"score.weight": found.classifier}
    if dtype == "bfloat16":
        weights = {name: weight.bfloat16() for name, weight in weights.items()}
        variables = to_openai(found.config, weights)
        again = from_openai(variables)
        assert all(torch.equal(again.weights[name], weights[name]) for name in again.weights)
        return
    back = to_openai(found.config, weights)
    assert back.keys() == variables.keys()
    assert all(
        back[name].dtype == array.dtype and np.array_equal(back[name], array) for name, array in variables.items()
    )


def test_variables_that_are_not_weights_are_ignored():
    extra = {"global_step": np.int64(131_000), "model/wte/Adam": np.zeros(1), "model/h0/ln_1/g/Adam_1": np.zeros(1)}
    extra |= {"beta1_power": np.float32(0.9), "model/wpe/adam_v": np.zeros(1)}
    found = from_openai({**random_variables(), **extra})
    assert found.step == 131_000
    assert found.ignored == sorted(extra)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("model/wpe"), "it lacks model/wpe"),
        (lambda v: v.pop("model/h1/attn/k_proj"), "it lacks model/h1/attn/k_proj"),
        (lambda v: [v.pop(name) for name in list(v) if name.startswith("model/h1/")], "model/h1/ln_1/g and 3 more"),
        (
            lambda v: v.update({"model/h0/attn/bias": np.zeros(3)}),
            "it has model/h0/attn/bias, which are not",
        ),
        (lambda v: v.update({"model/wtet": np.zeros((12, 8))}), "model/wtet has the shape (12, 8), but the other"),
        (lambda v: v.update({"model/h2/mlp/c_proj/w": np.zeros((32, 9))}), "but the other variables imply (32, 8)"),
        (lambda v: v.update({"model/wte": np.zeros(8)}), "must have 2, 2, 3 and 2 axes"),
        (lambda v: v.update({"model/clf/wclf": np.zeros((3, 9))}), "model/clf/wclf has the shape (3, 9)"),
        # A name alone made a list of as many blocks as it says, and of other names.
        (lambda v: v.update({"model/h99999999/ln_1/g": np.zeros(8)}), "it has model/h99999999/ln_1/g, which are not"),
        (lambda v: v.update({f"model/h{'9' * 5000}/ln_1/g": np.zeros(8)}), "it has model/h999"),
        (lambda v: v.update({"model/ln_f/g": np.ones(8, np.int32)}), "model/ln_f/g is of type int32: weights must be"),
        (lambda v: v.update({"model/wpe": v["model/wpe"].astype("c8")}), "model/wpe is of type complex64: weights"),
        (lambda v: v.update({"global_step": np.zeros(3)}), "global_step is float64 of the shape (3,): it must be one"),
        (lambda v: v.clear(), "this is not a checkpoint of OpenAI's ImageGPT: it lacks model/h0/attn/c_proj"),
    ],
)
def test_inconsistent_variables_are_listed(change, message):
    variables = random_variables()
    change(variables)
    with pytest.raises(ValueError, match=re.escape(message)):
        from_openai(variables)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"add_cross_attention": True}, "cross-attention"),
        ({"activation_function": "relu"}, "the activation relu"),
        ({"n_inner": 20}, "the inner width 20"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scaling by layer index"),
        ({"layer_norm_epsilon": 1e-6}, "the epsilon 1e-06"),
        ({"use_bias": True}, "biases, such as transformer.h.0.attn.c_attn.bias"),
    ],
)
def test_unsupported_models_are_not_exported(fields, message):
    config = ImageGPTConfig(
        **{"vocab_size": 12, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2, "use_bias": False} | fields
    )
    model = ImageGPTForCausalImageModeling(config)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.ones_(weight)
    with pytest.raises(ValueError, match=re.escape(message)):
        to_openai(config, model.state_dict())


@pytest.fixture
def checkpoint(tmp_path):
    write_bundle(tmp_path / "model.ckpt-7", {**random_variables(), "global_step": np.int64(7)}, num_shards=4)
    return tmp_path / "model.ckpt-7"


@pytest.mark.parity
def test_a_converted_folder_loads_in_transformers(checkpoint, tmp_path):
    converted = conversion.convert_openai(checkpoint, tmp_path / "out", palette=ColorPalette.grey(11), biases=True)
    assert (converted.step, converted.num_classes) == (7, 0)
    ours = ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "out").eval()
    theirs = Reference.from_pretrained(tmp_path / "out").eval()
    ids = with_start_token(torch.randint(11, (3, 16)), 11)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "after 7 training steps" in card
    assert len(re.findall(r"\| [0-9a-f]{64} \|", card)) == 5


def test_classifier_is_saved_to_a_subfolder(tmp_path):
    variables = random_variables(classes=5)
    write_bundle(tmp_path / "b", variables)
    converted = conversion.convert_openai(tmp_path / "b", tmp_path / "out", palette=ColorPalette.grey(11))
    assert converted.num_classes == 5
    classifier = ImageGPTForImageClassification.from_pretrained(tmp_path / "out" / "classifier").double().eval()
    ids = torch.randint(11, (3, 16))
    streams, _ = forward(variables, ids.numpy())
    final = streams[-1] / np.sqrt(np.mean(streams[-1] ** 2, axis=-1, keepdims=True) + 1e-5) * variables["model/ln_f/g"]
    with torch.no_grad():
        logits = classifier(ids).logits.numpy()
    np.testing.assert_allclose(logits, final.mean(axis=1) @ variables["model/clf/wclf"].T, rtol=0, atol=1e-5)


def test_export_then_import_changes_no_bit(checkpoint, tmp_path):
    before = read_bundle(checkpoint)
    conversion.convert_openai(checkpoint, tmp_path / "out", palette=ColorPalette.grey(11))
    names = conversion.export_openai(tmp_path / "out", tmp_path / "back", num_shards=2)
    after = read_bundle(tmp_path / "back")
    assert set(names) == set(after) == set(before) - {"global_step"}
    assert all(np.array_equal(after[name], before[name]) for name in after)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "bert"}, "is not a checkpoint for the objective 'bert': it has a start token"),
        ({"palette": ColorPalette.grey(12)}, "the palette has 12 colours and"),
    ],
)
def test_conversion_errors(options, message, checkpoint, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        conversion.convert_openai(checkpoint, tmp_path / "out", **{"palette": ColorPalette.grey(11)} | options)
    assert not (tmp_path / "out").exists()


def test_convert_transformers_folders(tmp_path):
    variables = random_variables()
    write_bundle(tmp_path / "b", variables)
    conversion.convert_openai(tmp_path / "b", tmp_path / "new", palette=ColorPalette.grey(11), biases=True)
    model = ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "new").half()
    old = tmp_path / "old"
    model.save_pretrained(old, max_shard_size="4kB")
    assert len(list(old.glob("*.safetensors"))) > 1
    (old / "preprocessor_config.json").write_bytes((tmp_path / "new" / "preprocessor_config.json").read_bytes())
    conversion.convert_transformers(old, tmp_path / "sharded")
    for path in old.glob("*.safetensors*"):
        path.unlink()
    torch.save(model.state_dict(), old / "pytorch_model.bin")
    conversion.convert_transformers(old, tmp_path / "pickled")
    for name in ("sharded", "pickled"):
        assert [path.name for path in (tmp_path / name).glob("*.safetensors")] == ["model.safetensors"]
        again = ImageGPTForCausalImageModeling.from_pretrained(tmp_path / name, dtype="auto")
        assert all(
            torch.equal(one.half(), other.half())
            for one, other in zip(again.parameters(), model.parameters(), strict=True)
        )
