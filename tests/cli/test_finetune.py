import json
import re
import shlex

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification

from helpers import digit_ids, largest_difference
from imagegpt import ImageGPTForImageClassification
from imagegpt.checkpoints.loading import find_folder, load_model
from imagegpt.training import card
from imagegpt.training.recipe_io import read_recipe
from imagegpt.training.trainer import Trainer

QUICK = [
    word
    for change in ("num_steps=4", "warmup_steps=1", "batch_size=4", "precision=float32")
    for word in ("--set", f"training.{change}")
]
QUICK += ["--set", "monitoring.validate_every=2", "--set", "monitoring.checkpoint_every=2"]


@pytest.fixture
def photos(workplace):
    """Dark and light pictures of two classes, in folders, larger than the model's images."""
    for label, base in (("dark", 30), ("light", 200)):
        (workplace / "photos" / label).mkdir(parents=True)
        for index in range(20):
            noise = np.random.default_rng(index).integers(0, 40, (9, 12, 3))
            Image.fromarray((base + noise).astype(np.uint8)).save(workplace / "photos" / label / f"{index}.png")
    return workplace / "photos"


def recipe_of(folder):
    return read_recipe(folder / "recipe.yaml")


def test_pictures_in_class_folders_get_the_models_palette_and_size(run, workplace, photos):
    code, out, err = run("finetune", "./tiny", "photos", "--out", "reader", *QUICK)
    assert code == 0, err
    said = r"accuracy on \d+ images of photos: \d+\.\d% \(validation split; it also chose the checkpoint\)\n"
    assert re.fullmatch(said, out)
    classifier = ImageGPTForImageClassification.from_pretrained("reader")
    assert classifier.config.id2label == {0: "dark", 1: "light"}
    assert classifier.config.n_positions == 16
    with Image.open("reader/confusion.png") as picture:
        assert min(picture.size) > 100
    data = recipe_of(workplace / "reader").data
    assert (data.train, data.palette, data.side) == ("photos", "./tiny", 4)


def test_the_bundled_model_has_a_recipe_of_its_own(run, workplace):
    code, out, err = run("finetune", "digits", "digits", "--out", "reader", *QUICK)
    assert code == 0, err
    assert re.fullmatch(r"accuracy on 360 images of digits: \d+\.\d% \(test split\)\n", out)
    assert recipe_of(workplace / "reader").training.learning_rate == 0.003
    other = ["--recipe", "finetune", "--set", "data.augmentation=none"]
    assert run("finetune", "digits", "digits", "--out", "other", *other, *QUICK)[0] == 0
    assert recipe_of(workplace / "other").training.learning_rate == 0.0003


def test_a_classifier_scores_the_same_in_transformers(run, workplace):
    """As anyone would use the folder who has never heard of this package."""
    assert run("finetune", "digits", "digits", "--out", "reader", *QUICK)[0] == 0
    theirs = AutoModelForImageClassification.from_pretrained("reader").eval()
    assert type(theirs) is not ImageGPTForImageClassification
    ours = ImageGPTForImageClassification.from_pretrained("reader").eval()
    ids = digit_ids("test")[:20]
    assert largest_difference(ours(ids).logits, theirs(ids).logits) < 1e-4


def test_the_papers_form_is_an_option_that_transformers_refuses(run, workplace):
    words = [*QUICK, "--set", "model.shift_inputs=true"]
    assert run("finetune", "digits", "digits", "--out", "reader", *words)[0] == 0
    assert ImageGPTForImageClassification.from_pretrained("reader").config.shift_inputs
    with pytest.raises(ValueError, match="imagegpt_extended"):
        AutoModelForImageClassification.from_pretrained("reader")


def test_info_of_a_classifier_is_about_the_classifier(run, workplace, photos):
    for name, words in (("plain", []), ("shifted", ["--set", "model.shift_inputs=true"])):
        assert run("finetune", "./tiny", "photos", "--out", name, *QUICK, *words)[0] == 0
    model = ImageGPTForImageClassification.from_pretrained("plain")
    num_parameters = sum(weight.numel() for weight in model.parameters())
    status, out, _ = run("info", "./plain")
    assert status == 0
    facts = {line[:22].strip(): line[22:].strip() for line in out.splitlines()}
    assert facts["kind"] == "classifier of 2 classes, autoregressive"
    assert facts["parameters"] == f"{num_parameters:,}"
    assert facts["classes"] == "dark, light"
    assert facts["input"] == "all pixels, as in transformers' classifier"
    assert "an image" not in facts["operations"]  # it draws none
    assert "keys and values" not in facts
    assert "the start token, then all pixels but the last" in run("info", "./shifted")[1]
    assert f"{num_parameters:,} parameters" in (workplace / "plain/README.md").read_text()


def test_a_bidirectional_model_becomes_a_bidirectional_classifier(run, workplace):
    code, out, err = run("finetune", "digits-bert", "digits", "--out", "reader", *QUICK)
    assert code == 0, err
    assert re.fullmatch(r"accuracy on 360 images of digits: \d+\.\d% \(test split\)\n", out)
    assert recipe_of(workplace / "reader").objective.name == "joint-bert"
    assert not ImageGPTForImageClassification.from_pretrained("reader").config.is_causal


@pytest.mark.slow
def test_the_general_recipe_of_a_bidirectional_model_is_bidirectional(run, workplace):
    general = ["--recipe", "finetune", "--set", "data.augmentation=none"]
    assert run("finetune", "digits-bert", "digits", "--out", "other", *general, *QUICK)[0] == 0
    assert recipe_of(workplace / "other").objective.name == "joint-bert"
    assert not ImageGPTForImageClassification.from_pretrained("other").config.is_causal


@pytest.mark.parametrize("shift_inputs", [False, True])
def test_finetuning_begins_with_the_models_weights(shift_inputs, run, workplace):
    """Without the start token pixel t gets the position it had in pre-training, t + 1."""
    words = [*QUICK, "--set", "training.learning_rate=1e-9", "--set", f"model.shift_inputs={shift_inputs}".lower()]
    assert run("finetune", "digits", "digits", "--out", "reader", *words)[0] == 0
    tuned = ImageGPTForImageClassification.from_pretrained("reader").transformer.state_dict()
    expected = load_model(find_folder("digits")).transformer.state_dict()
    if not shift_inputs:
        expected["wpe.weight"] = torch.cat([expected["wpe.weight"][1:], expected["wpe.weight"][-1:]])
    for name, weight in expected.items():
        torch.testing.assert_close(tuned[name], weight, rtol=0, atol=1e-6)


def test_adapters_are_merged_and_leave_everything_else_alone(run, workplace):
    code, _, err = run("finetune", "digits", "digits", "--out", "reader", "--lora", 2, *QUICK)
    assert code == 0, err
    before = load_model(find_folder("digits")).transformer.state_dict()
    before["wpe.weight"] = torch.cat([before["wpe.weight"][1:], before["wpe.weight"][-1:]])  # see above
    tuned = ImageGPTForImageClassification.from_pretrained("reader").transformer.state_dict()
    assert tuned.keys() == before.keys()
    moved = {name for name in before if not torch.equal(before[name], tuned[name])}
    assert moved == {name for name in before if re.search(r"c_(attn|proj|fc)\.weight$", name)}
    for name in moved:
        assert torch.linalg.matrix_rank(tuned[name] - before[name], rtol=1e-3) <= 2, name
    assert "by LoRA of rank 2, merged" in (workplace / "reader" / "README.md").read_text()


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_its_adapters(run, workplace, monkeypatch):
    run("finetune", "digits", "digits", "--out", "whole", "--lora", 2, *QUICK)
    status = Trainer._status
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_status", lambda self: "stopped" if self.state.step == 2 else status(self))
        _, _, err = run("finetune", "digits", "digits", "--out", "parts", "--lora", 2, *QUICK)
    command = re.search(r"resume with: imagegpt (.*)$", " ".join(err.split()))[1].split()
    assert command[:5] == ["finetune", "digits", "digits", "--out", "parts"]
    assert command[5:7] == ["--lora", "2"]
    assert run(*command)[0] == 0
    logs = [(workplace / name / "log.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    losses = [[json.loads(line)["metrics"] for line in log] for log in logs]
    assert losses[0] == losses[1]
    weights = [(workplace / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing", "digits"], "nothing"),
        (["digits", "nowhere"], "nowhere"),
        (["digits", "digits", "--recipe", "none"], "there is no recipe 'none': choose one of"),
        (["digits", "digits", "--lora", "0"], "--lora"),
        (["./tiny", "digits"], "the data digits has 17 colours, the model 10"),
        (["./tiny", "flat"], "objective.name is 'joint', and the images of data.train = flat have no labels"),
    ],
)
def test_what_cannot_be_finetuned(words, message, run, workplace):
    (workplace / "flat").mkdir()
    for index in range(3):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(workplace / "flat" / f"{index}.png")
    code, _, err = run("finetune", *words, "--out", "reader", *QUICK)
    assert code == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert not (workplace / "reader").exists()


def test_adapters_need_a_model(run, workplace):
    code, _, err = run("train", "digits", "--out", "m", "--set", "model.lora_rank=4")
    assert code == 2
    assert "model.lora_rank is 4 and model.pretrained is missing" in " ".join(err.split())


def test_a_picture_that_cannot_be_drawn_does_not_cost_the_card(run, workplace, photos, monkeypatch):
    def fail(*_):
        raise ArithmeticError("no\npicture")

    monkeypatch.setattr(card, "confusion_matrix_plot", fail)
    code, out, err = run("finetune", "./tiny", "photos", "--out", "reader", *QUICK)
    assert code == 0, err
    assert "accuracy on " in out
    assert "warning: there is no confusion picture (no picture)\n" in err
    assert "Accuracy on " in (workplace / "reader" / "README.md").read_text()
    assert not (workplace / "reader" / "confusion.png").exists()


@pytest.mark.parametrize("title", ["a `b` c", "``"])
def test_the_command_in_a_card_is_code_whatever_is_in_it(run, workplace, photos, title):
    words = ["finetune", "./tiny", "photos", "--out", "reader", *QUICK, "--set", f'card.title="{title}"']
    assert run(*words)[0] == 0
    command = re.search(r"- Command: (`+) ?(.*?) ?\1,\n", (workplace / "reader" / "README.md").read_text())[2]
    assert shlex.split(command) == ["imagegpt", *words]
