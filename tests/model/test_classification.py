"""The classifier: its inputs, pooling and three losses, against float64 by hand."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
from transformers.models.imagegpt.modeling_imagegpt import ImageGPTForImageClassification as Reference

import oracle
from helpers import image_ids, largest_difference, tiny_config, tiny_model
from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling, ImageGPTForImageClassification


def classifier(**options):
    return tiny_model(ImageGPTForImageClassification, **{"num_labels": 4, **options})


def pixels(**options):
    return image_ids(sos=False, **options)


def exact_logits(model, ids):
    """The paper's classifier in float64: mean of the normed features, one matrix, no bias."""
    last, _ = oracle.features(oracle.base_state(model), model.config, ids)
    return last.mean(1) @ oracle.as_numpy(model.state_dict())["score.weight"].T


def shifted(ids):
    return torch.cat([torch.full((len(ids), 1), 16), ids[:, :-1]], dim=1)


# --- shift_inputs ---


def test_shifted_inputs_start_with_sos_and_drop_last_pixel():
    model = classifier(dtype=torch.float64, shift_inputs=True)
    logits = model(pixels()).logits
    assert largest_difference(logits, torch.as_tensor(exact_logits(model, shifted(pixels())))) < 1e-12


def test_unshifted_inputs():
    model = classifier(dtype=torch.float64, shift_inputs=False)
    logits = model(pixels()).logits
    assert largest_difference(logits, torch.as_tensor(exact_logits(model, pixels()))) < 1e-12


def test_shifted_and_unshifted_inputs_differ():
    assert largest_difference(classifier()(pixels()).logits, classifier(shift_inputs=True)(pixels()).logits) > 0.01


def test_embeddings_are_shifted_like_ids():
    model = classifier(shift_inputs=True)
    embeds = model.transformer.wte(pixels())
    assert largest_difference(model(inputs_embeds=embeds).logits, model(pixels()).logits) < 1e-6


def test_token_types_and_masks_are_shifted_with_pixels():
    """The mask marks real pixels; after shifting, its first column belongs to the start token."""
    model, plain = classifier(shift_inputs=True), classifier()
    mask = torch.tensor([[1] * 10 + [0] * 6, [1] * 16])
    moved = torch.tensor([[1] * 11 + [0] * 5, [1] * 16])
    ours = model(pixels(), attention_mask=mask).logits
    assert largest_difference(ours, plain(shifted(pixels()), attention_mask=moved).logits) < 1e-6


def test_inputs_are_unshifted_by_default(tmp_path):
    assert ImageGPTConfig().shift_inputs is False
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "imagegpt", "n_embd": 32, "n_head": 4, "n_layer": 2}))
    assert ImageGPTConfig.from_json_file(path).shift_inputs is False
    assert ImageGPTConfig.from_pretrained(tmp_path).shift_inputs is False
    assert ImageGPTConfig.from_pretrained(tmp_path, shift_inputs=True).shift_inputs is True


@pytest.mark.parametrize("shift_inputs", [True, False])
def test_shift_inputs_survives_saving(shift_inputs, tmp_path):
    model = classifier(shift_inputs=shift_inputs)
    model.save_pretrained(tmp_path)
    loaded = ImageGPTForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.shift_inputs is shift_inputs
    assert largest_difference(loaded(pixels()).logits, model(pixels()).logits) == 0


# --- In transformers ---


def test_a_default_classifier_scores_the_same_in_transformers(tmp_path):
    classifier().save_pretrained(tmp_path)
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert type(theirs) is Reference
    assert largest_difference(theirs(pixels()).logits, classifier()(pixels()).logits) < 1e-5


@pytest.mark.parametrize("options", [{"shift_inputs": True}, {"is_causal": False}], ids=["shifted", "bidirectional"])
@pytest.mark.parametrize("auto", [AutoConfig, AutoModel, AutoModelForImageClassification])
def test_transformers_refuses_a_shifted_classifier(options, auto, tmp_path):
    classifier(**options).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="imagegpt_extended"):
        auto.from_pretrained(tmp_path)


def test_transformers_refuses_a_bidirectional_model(tmp_path):
    tiny_model(ImageGPTForCausalImageModeling, is_causal=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="imagegpt_extended"):
        AutoConfig.from_pretrained(tmp_path)


def test_registered_auto_classes_load_extended_models(tmp_path, forkserver):
    """In a subprocess, because `register` affects the whole process."""
    models = [classifier(**options) for options in ({}, {"shift_inputs": True}, {"is_causal": False})]
    for index, model in enumerate(models):
        model.save_pretrained(tmp_path / str(index))
    torch.save(pixels(), tmp_path / "ids.pt")
    code = (
        "import imagegpt, pathlib, sys, torch, transformers\n"
        "imagegpt.register()\n"
        "place = pathlib.Path(sys.argv[1])\n"
        "for folder in '012':\n"
        "    model = transformers.AutoModelForImageClassification.from_pretrained(place / folder).eval()\n"
        "    assert type(model) is imagegpt.ImageGPTForImageClassification\n"
        "    torch.save(model(torch.load(place / 'ids.pt')).logits, place / f'logits{folder}.pt')\n"
    )
    done = forkserver.run(["-c", code, tmp_path])
    assert done.returncode == 0, done.stderr
    for index, model in enumerate(models):
        assert largest_difference(torch.load(tmp_path / f"logits{index}.pt"), model(pixels()).logits) < 1e-6


# --- Losses ---


def test_single_label_loss_in_float64_by_hand():
    model = classifier(dtype=torch.float64)
    labels = torch.tensor([3, 1])
    outputs = model(pixels(), labels=labels)
    logits = exact_logits(model, pixels())
    expected = np.mean([np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, labels, strict=True)])
    assert outputs.loss.item() == pytest.approx(expected, abs=1e-6)


def test_regression_loss_in_float64_by_hand():
    model = classifier(num_labels=1, dtype=torch.float64)
    labels = torch.tensor([0.3, -2.0], dtype=torch.float64)
    expected = np.mean((exact_logits(model, pixels())[:, 0] - labels.numpy()) ** 2)
    assert model(pixels(), labels=labels).loss.item() == pytest.approx(expected, rel=1e-6)


def test_regression_of_several_numbers():
    model = classifier(num_labels=3, problem_type="regression", dtype=torch.float64)
    labels = torch.tensor([[0.3, -2.0, 1], [0.1, 0.2, 0.3]], dtype=torch.float64)
    expected = np.mean((exact_logits(model, pixels()) - labels.numpy()) ** 2)
    assert model(pixels(), labels=labels).loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
def test_multi_label_loss_in_float64_by_hand(problem_type):
    model = classifier(problem_type=problem_type, dtype=torch.float64)
    labels = torch.tensor([[1.0, 0, 1, 0], [0, 0, 1, 1]], dtype=torch.float64)
    logits = exact_logits(model, pixels())
    expected = np.mean(np.log1p(np.exp(logits)) - labels.numpy() * logits)
    assert model(pixels(), labels=labels).loss.item() == pytest.approx(expected, rel=1e-6)


def test_integers_for_one_label_are_regression():
    # With one output a cross entropy would be zero whatever the weights.
    model = classifier(num_labels=1)
    assert model(pixels(), labels=torch.tensor([5, 7])).loss > 1


def test_problem_type_is_not_remembered_between_batches():
    # transformers writes the guessed problem_type into the configuration at the first batch.
    model = classifier()
    model(pixels(), labels=torch.tensor([1.0, 0, 0, 0]).expand(2, 4))
    assert model.config.problem_type is None
    assert model(pixels(), labels=torch.tensor([1, 2])).loss > 0


def test_label_out_of_range_is_refused():
    with pytest.raises((ValueError, IndexError), match="4"):
        classifier()(pixels(), labels=torch.tensor([4, 0]))


# --- Outputs ---


def test_head_has_no_bias_and_the_configured_number_of_labels():
    model = classifier(num_labels=7)
    assert model.score.weight.shape == (7, 32)
    assert model.score.bias is None
    assert model(pixels()).logits.shape == (2, 7)


def test_tuple_output_is_loss_then_logits():
    model = classifier()
    loss, logits = model(pixels(), labels=torch.tensor([0, 1]), return_dict=False, use_cache=False)[:2]
    assert loss.ndim == 0
    assert logits.shape == (2, 4)
    assert model(pixels(), return_dict=False, use_cache=False)[0].shape == (2, 4)


def test_every_weight_has_a_gradient():
    model = classifier()
    model(pixels(), labels=torch.tensor([0, 1])).loss.backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())


def test_full_image_fits_classifier():
    config = tiny_config()
    assert pixels().shape[1] == config.n_positions
    classifier()(pixels())
