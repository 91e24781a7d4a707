"""A run in a folder, below the command line; see tests/cli/test_train.py for what a user sees."""

import json

import pytest
import torch

from imagegpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification
from imagegpt.data.sources.digits import load_digits
from imagegpt.training import scores
from imagegpt.training.callbacks import draw_curve
from imagegpt.training.datasets import open_data
from imagegpt.training.distributed import World
from imagegpt.training.objectives import autoregressive_loss
from imagegpt.training.recipe import DataRecipe
from imagegpt.training.recipe_io import parse_recipe
from imagegpt.training.run import Run
from imagegpt.training.run_folder import check_folder
from imagegpt.training.scores import classify, masked_nats, parts_of, score_folder

ALONE = World(torch.device("cpu"))


def recipe(**changes):
    content = {
        "model": {"n_layer": 1, "n_embd": 8, "n_head": 1},
        "data": {"train": "digits"},
        "training": {"num_steps": 4, "warmup_steps": 1, "batch_size": 32, "precision": "float32"},
        "watch": {"validate_every": 2, "checkpoint_every": 2, "samples": 0},
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
        expected = autoregressive_loss(model, load_digits().validation.ids).item()
    assert run.progress.best["total"] == pytest.approx(expected, abs=1e-6)


def test_validation_may_be_limited_to_some_images(tmp_path):
    run = trained(tmp_path / "m", watch={"validation_images": 100})
    assert len(run.data.watched) == 100
    assert run.progress.best["total"] == pytest.approx(run.score(run.data.watched)["total"], abs=0.05)
    scored = {one.name: one.nats for one in score_folder(tmp_path / "m", run.data, part="validation")}
    assert scored["while training"] == pytest.approx(run.progress.best["total"], abs=1e-6)
    assert scored["while training"] != pytest.approx(scored["this model"], abs=1e-6)
    whole = Run(recipe(watch={"validation_images": 10_000}), tmp_path / "n", ALONE)
    assert whole.data.watched is whole.data.validation


def test_scoring_leaves_the_mode_alone(tmp_path):
    run = Run(recipe(), tmp_path / "m", ALONE)
    model = run._loss.model.train()
    model.transformer.h[0].eval()  # a part that is to be left alone
    before = [module.training for module in model.modules()]
    run.score(run.data.validation)
    assert [module.training for module in model.modules()] == before


def test_bert_validates_with_the_same_masks_every_time(tmp_path):
    run = Run(recipe(objective={"name": "bert"}, model={"resid_pdrop": 0.5}), tmp_path / "m", ALONE)
    assert run.score(run.data.validation) == run.score(run.data.validation)
    run.train()
    nats = masked_nats(tmp_path / "m", run.data.validation)
    assert nats == pytest.approx(run.progress.best["total"], abs=1e-6)


def test_a_classifier_says_what_validation_counted(tmp_path):
    run = trained(tmp_path / "m", objective={"name": "joint"})
    said, right = classify(tmp_path / "m", run.data.validation)
    assert (said == right).mean() == pytest.approx(run.progress.best["correct"], abs=1e-9)
    assert ImageGPTForImageClassification.from_pretrained(tmp_path / "m").config.id2label[7] == "7"


def test_a_bidirectional_classifier_reads_each_image_five_times(tmp_path, monkeypatch):
    run = trained(tmp_path / "m", objective={"name": "joint-bert"})
    classifier = ImageGPTForImageClassification.from_pretrained(tmp_path / "m")
    assert (classifier.config.is_causal, classifier.config.shift_inputs) == (False, False)
    asked = []
    voted = scores.modal_class
    monkeypatch.setattr(scores, "modal_class", lambda views: (asked.append(views), voted(views))[1])
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
    monkeypatch.setattr(run, "score", lambda *_: {"total": next(scores)})
    kept = []
    write = run._on_validation
    monkeypatch.setattr(
        run._trainer, "_on_validation", lambda *told: (write(*told), kept.append(weights(tmp_path / "m")))
    )
    run.train()
    assert kept[0] == kept[1] == weights(tmp_path / "m")
    assert run.progress.best_step == 2


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_parts_are_the_images_themselves():
    digits, parts = load_digits(), parts_of(open_data(DataRecipe(train="digits", augmentation="flip")), "test")
    assert (parts.train == digits.train.ids.numpy()).all()
    assert (parts.test == digits.test.ids.numpy()).all()
    assert (parts.num_colors, parts.side) == (17, 8)


def test_scores_come_best_first(tmp_path):
    run = trained(tmp_path / "m")
    scores = score_folder(tmp_path / "m", run.data, name="mine")
    assert [one.nats for one in scores] == sorted(one.nats for one in scores)
    assert {one.name for one in scores} == {"mine", "neighbours", "histogram", "uniform"}


def test_a_hidden_file_does_not_make_a_folder_foreign(tmp_path):
    (tmp_path / ".DS_Store").touch()
    check_folder(tmp_path, recipe())
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="holds no training run"):
        check_folder(tmp_path, recipe())


def test_steps_that_were_undone_are_drawn_once(tmp_path):
    lines = [{"step": step, "metrics": {"total": loss}} for step, loss in ((1, 3.0), (2, 9.0), (2, 2.0))]
    pictures = []
    for number, several in enumerate((lines, [lines[0], lines[2]])):
        (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in several))
        draw_curve(tmp_path / "log.jsonl", tmp_path / f"{number}.png")
        pictures.append((tmp_path / f"{number}.png").read_bytes())
    assert pictures[0] == pictures[1]


def test_images_without_a_label_end_a_run_that_learns_classes(tmp_path):
    run = Run(recipe(objective={"name": "classification"}), tmp_path / "m", ALONE)
    run.data.train._labels[:] = -1
    with pytest.raises(ValueError, match="an image has no label, and this objective learns classes"):
        run.train()
