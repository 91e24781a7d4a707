import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from helpers import STRIPES, StripeDataset, largest_difference, tiny_config, tiny_model
from imagegpt import (
    ColorPalette,
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTImageProcessor,
)
from imagegpt.data.batch import Batch
from imagegpt.data.data_splits import DataSplits
from imagegpt.data.loading import open_data
from imagegpt.data.recipe import DataRecipe
from imagegpt.training.factory import build_model, rebuild_model, save_model
from imagegpt.training.objectives import Autoregressive, Bert, Classification, ImageGPTWithBothHeads, Joint, JointBert
from stripes import make_recipe, same_weights, weights_of

PROCESSOR = ImageGPTImageProcessor(ColorPalette.grey(16), size=4)
NO_SHAPE = {"n_layer": None, "n_embd": None, "n_head": None}


def data(processor=PROCESSOR, classes=("a", "b", "c", "d")):
    images = StripeDataset()
    return DataSplits(
        name="stripes",
        splits={"train": images, "validation": images},
        sources=[images],
        processor=processor,
        classes=None if classes is None else list(classes),
        record=open_data(DataRecipe(train="digits")).record,  # of no consequence here
        is_training_data=True,
    )


def folder_with(path, processor=PROCESSOR, **config):
    tiny_model(**config).save_pretrained(path)
    processor.save_pretrained(path)
    return path


def pretrained(path, objective="autoregressive", **model):
    return make_recipe(model={**NO_SHAPE, "pretrained": str(path), **model}, objective={"name": objective})


@pytest.mark.parametrize(
    ("objective", "kind", "options"),
    [
        ("autoregressive", ImageGPTForCausalImageModeling, Autoregressive()),
        ("bert", ImageGPTForCausalImageModeling, Bert(mask_probability=0.3)),
        ("classification", ImageGPTForImageClassification, Classification()),
        ("joint", ImageGPTWithBothHeads, Joint(generative_weight=0.5)),
        ("joint-bert", ImageGPTWithBothHeads, JointBert(mask_probability=0.3, generative_weight=0.5)),
    ],
)
def test_each_objective_has_its_model(objective, kind, options):
    hiding, weighing = {"mask_probability": 0.3}, {"generative_weight": 0.5}
    fields = {"bert": hiding, "joint": weighing, "joint-bert": {**hiding, **weighing}}.get(objective, {})
    loss = build_model(make_recipe(objective={"name": objective, **fields}), data())
    assert type(loss.model) is kind
    assert loss.objective == options
    config = loss.model.config
    assert (config.vocab_size, config.n_positions, config.is_causal) == (17, 16, "bert" not in objective)
    if objective in ("classification", "joint", "joint-bert"):
        assert config.id2label == {0: "a", 1: "b", 2: "c", 3: "d"}
        assert loss.model.score.weight.shape == (4, 32)
        assert config.shift_inputs is False


def test_fresh_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = build_model(make_recipe(), data()).model
    torch.manual_seed(2)
    assert same_weights(first, build_model(make_recipe(), data()).model)
    assert not same_weights(first, build_model(make_recipe(training={"seed": 1}), data()).model)


def test_embeddings_may_start_sinusoidal():
    random = build_model(make_recipe(), data())
    sinusoidal = build_model(make_recipe(model={"embedding_init": "sinusoidal"}), data())
    changed = {
        name
        for name, weight in sinusoidal.model.named_parameters()
        if not torch.equal(weight, random.model.get_parameter(name))
    }
    assert changed == {"transformer.wpe.weight", "transformer.wte.weight"}
    ids = torch.arange(16).expand(2, 16)
    assert sinusoidal(Batch(ids=ids))["loss"].item() == pytest.approx(math.log(16), abs=1e-5)
    again = build_model(make_recipe(model={"embedding_init": "sinusoidal"}), data())
    assert same_weights(sinusoidal.model, again.model)


def test_a_pretrained_model_goes_on(tmp_path):
    folder = folder_with(tmp_path / "m")
    before = load_file(folder / "model.safetensors")
    positions = before["transformer.wpe.weight"]
    aligned = {**before, "transformer.wpe.weight": torch.cat([positions[1:], positions[-1:]])}
    for objective, shift_inputs, expected in (
        ("autoregressive", False, before),
        ("joint", True, before),
        ("classification", True, before),
        ("joint", False, aligned),  # without the start token pixel t gets its position of pre-training
        ("classification", False, aligned),
    ):
        model = build_model(pretrained(folder, objective, shift_inputs=shift_inputs), data()).model
        body = {name: weight for name, weight in weights_of(model).items() if name.startswith("transformer.")}
        assert body
        assert all(weight.equal(expected[name]) for name, weight in body.items())


@pytest.mark.parametrize(
    ("objective", "is_causal"), [("bert", True), ("joint-bert", True), ("autoregressive", False), ("joint", False)]
)
def test_weights_may_be_used_otherwise_when_asked(tmp_path, objective, is_causal):
    folder = folder_with(tmp_path / "m", is_causal=is_causal)
    model = build_model(pretrained(folder, objective, change_attention=True), data()).model
    assert model.config.is_causal != is_causal
    assert {block.attn.is_causal for block in model.transformer.h} == {not is_causal}
    before = load_file(folder / "model.safetensors")
    assert model.transformer.wpe.weight.equal(before["transformer.wpe.weight"])


def test_dropout_is_the_runs_own(tmp_path):
    folder = folder_with(tmp_path / "m", resid_pdrop=0.4, embd_pdrop=0.4, attn_pdrop=0.4)
    model = build_model(pretrained(folder, resid_pdrop=0.1, embd_pdrop=0.2, attn_pdrop=0.3), data()).model
    block = model.transformer.h[0]
    assert (block.attn.resid_dropout.p, block.mlp.dropout.p, model.transformer.drop.p) == (0.1, 0.1, 0.2)
    assert block.attn.config.attn_pdrop == model.config.attn_pdrop == 0.3


@pytest.mark.parametrize("objective", ["autoregressive", "classification", "joint"])
def test_the_kernel_is_the_one_asked_for(objective):
    for name in ("sdpa", "eager"):
        loss = build_model(make_recipe(objective={"name": objective}, training={"attention": name}), data())
        transformer = loss.model.transformer
        configs = [transformer.config, *(block.attn.config for block in transformer.h)]
        assert {config._attn_implementation for config in configs} == {name}


@pytest.mark.parametrize(
    ("config", "processor", "objective", "message"),
    [
        ({}, PROCESSOR, "bert", "the model .*m is causal, and objective.name = 'bert' needs a bidirectional one"),
        (
            {"is_causal": False},
            PROCESSOR,
            "autoregressive",
            "is bidirectional, and objective.name = 'autoregressive' needs a causal",
        ),
        ({"is_causal": False}, PROCESSOR, "joint", "is bidirectional, and objective.name = 'joint' needs a causal one"),
        ({}, PROCESSOR, "joint-bert", "needs a bidirectional one: choose another, or set model.change_attention=true"),
        ({"vocab_size": 33}, ImageGPTImageProcessor(ColorPalette.grey(32), size=4), "autoregressive", "stripes"),
        ({"n_positions": 64}, ImageGPTImageProcessor(ColorPalette.grey(16), size=8), "autoregressive", "stripes"),
        (
            {},
            ImageGPTImageProcessor(ColorPalette.from_rgb([*range(15), 255]), size=4),
            "autoregressive",
            "has another palette than the data stripes: encode them with --palette",
        ),
    ],
)
def test_a_pretrained_model_that_does_not_fit_is_refused(tmp_path, config, processor, objective, message):
    folder = folder_with(tmp_path / "m", processor, **config)
    with pytest.raises(ValueError, match=message) as caught:
        build_model(pretrained(folder, objective), data())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("objective", ["classification", "joint"])
def test_classes_need_labels(objective):
    with pytest.raises(
        ValueError, match=f"^objective.name is '{objective}', and the images of data.train = stripes have"
    ):
        build_model(make_recipe(objective={"name": objective}), data(classes=None))


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3"])
def test_a_kernel_that_is_not_installed_is_refused(name):
    with pytest.raises(
        ValueError, match=f"^training.attention is '{name}', which cannot run here .*: choose sdpa$"
    ) as e:
        build_model(make_recipe(training={"attention": name}), data())
    assert "\n" not in str(e.value)


def test_a_model_is_rebuilt_around_its_weights():
    model = tiny_model()
    again = rebuild_model(dict(model.state_dict()), model)
    assert again is not model
    assert same_weights(model, again)
    assert not again.training
    assert again(STRIPES[:2]).logits.equal(model(STRIPES[:2]).logits)


def saved_classifier(folder, **options):
    """What a joint run writes, and the model that it trains."""
    recipe = make_recipe(objective={"name": "joint"}, model={"use_bias": True, **options})
    model = build_model(recipe, data()).model.eval()
    with torch.no_grad():
        model.score.weight.normal_()
    folder.mkdir()
    save_model(model.state_dict(), model, PROCESSOR, folder)
    assert not [name for name in load_file(folder / "model.safetensors") if "lm_head" in name]
    return model


def test_a_saved_classifier_predicts_the_same_in_transformers(tmp_path):
    trained = saved_classifier(tmp_path / "m")
    ours = ImageGPTForImageClassification.from_pretrained(tmp_path / "m").eval()
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path / "m").eval()
    assert type(theirs) is not type(ours)
    logits = ours(STRIPES).logits
    assert largest_difference(logits, trained(STRIPES)[1]) < 1e-5
    assert largest_difference(logits, theirs(STRIPES).logits) < 1e-5
    assert ours.config.id2label == theirs.config.id2label == {0: "a", 1: "b", 2: "c", 3: "d"}


def test_a_shifted_classifier_is_the_papers_and_transformers_refuses_it(tmp_path):
    trained = saved_classifier(tmp_path / "m", shift_inputs=True)
    ours = ImageGPTForImageClassification.from_pretrained(tmp_path / "m").eval()
    shifted = torch.cat([torch.full((24, 1), 16), STRIPES[:, :-1]], dim=1)
    assert largest_difference(ours(STRIPES).logits, trained(shifted)[1]) < 1e-5
    with pytest.raises(ValueError, match="imagegpt_extended"):
        AutoModelForImageClassification.from_pretrained(tmp_path / "m")


def test_saving_replaces_a_model_and_leaves_nothing_else(tmp_path):
    for seed in range(2):
        model = tiny_model(seed=seed)
        save_model(model.state_dict(), model, PROCESSOR, tmp_path)
        assert same_weights(model, ImageGPTForCausalImageModeling.from_pretrained(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1
    assert json.loads((tmp_path / "config.json").read_text())["n_embd"] == tiny_config().n_embd
