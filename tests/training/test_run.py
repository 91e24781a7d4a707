"""A run in a folder, below the command line; see tests/cli/test_train.py for what a user sees."""

import json

import numpy as np
import pytest
import torch

from helpers import digit_ids
from imagegpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification
from imagegpt.data.datasets import ImageDataset
from imagegpt.evaluation import classification
from imagegpt.evaluation.classification import classify
from imagegpt.evaluation.scoring import masked_nats, score_split
from imagegpt.model.losses import autoregressive_loss
from imagegpt.training import run as run_module
from imagegpt.training import training_log
from imagegpt.training.distributed import DistributedContext
from imagegpt.training.recipe_io import parse_recipe
from imagegpt.training.run import Run
from imagegpt.training.run_folder import check_folder
from imagegpt.training.training_log import TrainingLog

ALONE = DistributedContext(torch.device("cpu"))


def recipe(**changes):
    content = {
        "model": {"n_layer": 1, "n_embd": 8, "n_head": 1},
        "data": {"train": "digits"},
        "training": {"num_steps": 4, "warmup_steps": 1, "batch_size": 32, "precision": "float32"},
        "monitoring": {"validate_every": 2, "checkpoint_every": 2, "samples": 0},
    }
    for section, fields in changes.items():
        content[section] = {**content.get(section, {}), **fields}
    return parse_recipe(content)


def trained(out, **changes):
    run = Run(recipe(**changes), out, ALONE)
    run.train()
    return run


def test_validation_is_the_exact_mean_over_all_images(tmp_path):
    run = trained(tmp_path / "m")
    model = ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "m").eval()
    with torch.no_grad():
        expected = autoregressive_loss(model, digit_ids("validation")).item()
    assert run.state.best["loss"] == pytest.approx(expected, abs=1e-6)


def test_validation_may_be_limited_to_some_images(tmp_path):
    run = trained(tmp_path / "m", monitoring={"validation_images": 100})
    assert len(run.data.monitored_validation) == 100
    assert run.state.best["loss"] == pytest.approx(run.score(run.data.monitored_validation)["loss"], abs=0.05)
    scored = {one.name: one.nats for one in score_split(tmp_path / "m", run.data, split="validation")}
    assert scored["while training"] == pytest.approx(run.state.best["loss"], abs=1e-6)
    assert scored["while training"] != pytest.approx(scored["this model"], abs=1e-6)
    whole = Run(recipe(monitoring={"validation_images": 10_000}), tmp_path / "n", ALONE)
    assert whole.data.monitored_validation is whole.data.validation


def test_scoring_leaves_the_mode_alone(tmp_path):
    run = Run(recipe(), tmp_path / "m", ALONE)
    model = run._module.model.train()
    model.transformer.h[0].eval()  # a part that is to be left alone
    before = [module.training for module in model.modules()]
    run.score(run.data.validation)
    assert [module.training for module in model.modules()] == before


def test_bert_validates_with_the_same_masks_every_time(tmp_path):
    run = Run(recipe(objective={"name": "bert"}, model={"resid_pdrop": 0.5}), tmp_path / "m", ALONE)
    assert run.score(run.data.validation) == run.score(run.data.validation)
    run.train()
    nats = masked_nats(tmp_path / "m", run.data.validation)
    assert nats == pytest.approx(run.state.best["loss"], abs=1e-6)


def test_a_classifier_says_what_validation_counted(tmp_path):
    run = trained(tmp_path / "m", objective={"name": "joint"})
    said, right = classify(tmp_path / "m", run.data.validation)
    assert (said == right).mean() == pytest.approx(run.state.best["accuracy"], abs=1e-9)
    assert ImageGPTForImageClassification.from_pretrained(tmp_path / "m").config.id2label[7] == "7"


def test_a_bidirectional_classifier_reads_each_image_five_times(tmp_path, monkeypatch):
    run = trained(tmp_path / "m", objective={"name": "joint-bert"})
    classifier = ImageGPTForImageClassification.from_pretrained(tmp_path / "m")
    assert (classifier.config.is_causal, classifier.config.shift_inputs) == (False, False)
    asked = []
    voted = classification.majority_class
    monkeypatch.setattr(classification, "majority_class", lambda views: (asked.append(views), voted(views))[1])
    said, right = classify(tmp_path / "m", run.data.validation, mask_probability=0.4)
    assert len(said) == len(right) == sum(views.shape[1] for views in asked)
    assert {len(views) for views in asked} == {5}
    assert not any(views[0].equal(views[1]) for views in asked)
    again, _ = classify(tmp_path / "m", run.data.validation, mask_probability=0.4)
    assert (said == again).all()


def test_the_best_model_is_the_one_in_the_folder(tmp_path, monkeypatch):
    """At step 4 validation is worse than at step 2, so the weights of step 2 stay."""
    scores = iter([1.0, 2.0])
    run = Run(recipe(), tmp_path / "m", ALONE)
    monkeypatch.setattr(run, "score", lambda *_: {"loss": next(scores)})
    kept = []
    write = run._save_best_and_samples
    monkeypatch.setattr(
        run._trainer, "_on_validation", lambda *arguments: (write(*arguments), kept.append(weights(tmp_path / "m")))
    )
    run.train()
    assert kept[0] == kept[1] == weights(tmp_path / "m")
    assert run.state.best_step == 2


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_scores_come_best_first(tmp_path):
    run = trained(tmp_path / "m")
    scores = score_split(tmp_path / "m", run.data, split="test", name="mine")
    assert [one.nats for one in scores] == sorted(one.nats for one in scores)
    assert {one.name for one in scores} == {"mine", "neighbours", "histogram", "uniform"}


def test_a_hidden_file_does_not_make_a_folder_foreign(tmp_path):
    (tmp_path / ".DS_Store").touch()
    check_folder(tmp_path, recipe())
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="holds no training run"):
        check_folder(tmp_path, recipe())


def test_steps_that_were_undone_are_drawn_once(tmp_path):
    lines = [{"step": step, "metrics": {"loss": loss}} for step, loss in ((1, 3.0), (2, 9.0), (2, 2.0))]
    pictures = []
    for number, several in enumerate((lines, [lines[0], lines[2]])):
        (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in several))
        TrainingLog(tmp_path / "log.jsonl", 2).draw_curve(tmp_path / f"{number}.png")
        pictures.append((tmp_path / f"{number}.png").read_bytes())
    assert pictures[0] == pictures[1]


def test_images_without_a_label_end_a_run_that_learns_classes(tmp_path, monkeypatch):
    run = Run(recipe(objective={"name": "classification"}), tmp_path / "m", ALONE)
    monkeypatch.setattr(ImageDataset, "read_labels", lambda _, indices: np.full(len(indices), -1))
    with pytest.raises(ValueError, match="an image has no label, which this objective needs"):
        run.train()


def test_the_log_is_read_once_when_a_run_is_resumed(tmp_path, monkeypatch):
    """It used to be read at every validation. The picture is still that of the whole log."""
    trained(tmp_path / "m", training={"num_steps": 2, "warmup_steps": 0})
    read, paths = training_log.read_log, []
    monkeypatch.setattr(training_log, "read_log", lambda path: (paths.append(path), read(path))[1])
    trained(tmp_path / "m", training={"num_steps": 4, "warmup_steps": 0})
    assert paths == [tmp_path / "m" / "log.jsonl"]
    TrainingLog(tmp_path / "m" / "log.jsonl", 4).draw_curve(tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "m" / "curve.png").read_bytes()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_samples_are_made_on_the_training_device(tmp_path, monkeypatch, device):
    devices = []
    monkeypatch.setattr(run_module, "save_samples", lambda model, *_: devices.append(model.device.type))
    Run(recipe(monitoring={"samples": 2}), tmp_path / "m", DistributedContext(torch.device(device))).train()
    assert devices == [device, device]
