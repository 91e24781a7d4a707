"""The data of a run keep their identity: from pictures or their ids to the numbers of training, card and evaluation."""

import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.utils import logging

from imagegpt import ColorPalette, ImageGPTImageProcessor
from imagegpt.checkpoints.loading import find_folder, load_config, load_processor
from imagegpt.cli import main
from imagegpt.data.identity import DataRecord, pixel_hash
from imagegpt.data.loading import open_data, open_data_for_model
from imagegpt.data.recipe import DataRecipe
from imagegpt.data.sources.registry import open_images
from imagegpt.data.splits import split_by_hash
from imagegpt.evaluation import scoring
from imagegpt.evaluation.scoring import read_all_ids, score_split
from imagegpt.jobs.encode import encode
from imagegpt.training.api import finetuning_recipe, finish_run
from imagegpt.training.callbacks import TrainingCallback
from imagegpt.training.distributed import DistributedContext
from imagegpt.training.lr_finder import LearningRateSearch
from imagegpt.training.recipe_io import parse_recipe
from imagegpt.training.run import Run

ALONE = DistributedContext(torch.device("cpu"))
NUM_IMAGES = 60
PALETTE = ColorPalette.from_rgb(np.random.default_rng(3).integers(0, 256, (16, 3)))

# The same images as ids, and as pictures that are flipped or cropped while training.
PREPROCESSINGS = {
    "ids": {"train": "encoded"},
    "flip": {"train": "photos.npz", "palette": "palette.npy", "side": 8, "augmentation": "flip"},
    "crop": {"train": "photos.npz", "palette": "palette.npy", "side": 8, "augmentation": "random-resized-crop"},
}
GRID = list(itertools.product((0, 1, 7), ((0.04, None), (0.2, None), (0.3, 5)), PREPROCESSINGS))
QUICK = [GRID[1], GRID[8], GRID[15], GRID[17], GRID[24]]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Smooth pictures of 12 x 10 pixels with labels, the last two of them copies, and their ids."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    small = torch.from_numpy(rng.integers(0, 256, (NUM_IMAGES, 3, 3, 3)).astype(np.float32))
    large = torch.nn.functional.interpolate(small, (12, 10), mode="bilinear").permute(0, 2, 3, 1)
    pixels = large.round().to(torch.uint8).numpy()
    pixels[-2:] = pixels[:2]
    np.savez("photos.npz", images=pixels, labels=np.arange(NUM_IMAGES) % 3)
    PALETTE.save("palette.npy")
    encode("photos.npz", "encoded", ImageGPTImageProcessor(PALETTE, size=8))
    return tmp_path


def recipe(data, **changes):
    content = {
        "model": {"n_layer": 1, "n_embd": 16, "n_head": 2, "use_bias": True},
        "data": data,
        "training": {"num_steps": 4, "warmup_steps": 1, "batch_size": 4, "learning_rate": 0.01, "ema_decay": 0.0},
        "monitoring": {"validate_every": 2, "checkpoint_every": 2, "samples": 0},
    }
    for section, fields in changes.items():
        content[section] = {**content.get(section, {}), **fields}
    return parse_recipe(content)


@pytest.fixture(autouse=True)
def _loud_again():
    """Commands silence transformers for their process, which the other tests share."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    yield
    logging.set_verbosity(level)
    (logging.enable_progress_bar if bars else logging.disable_progress_bar)()


def run_cli(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return stop.value.code, " ".join(out.split()), " ".join(err.split())


def open_for(location, folder):
    """The images, split as those that the model in a folder was trained on."""
    return open_data_for_model(location, "m", load_processor(folder, load_config(folder)), DataRecord.read(folder))


def check_agreement(capsys, monkeypatch, seed, split, limited, kind):
    """Train, then compare what the run, its card, its log and `evaluate` say, and see which images were trained on."""
    out, source, trained = Path("model"), open_images("photos.npz"), set()
    split, monitoring = {"validation": split, "seed": 5}, {} if limited is None else {"validation_images": limited}
    run = Run(
        recipe({**PREPROCESSINGS[kind], "split": split}, training={"seed": seed}, monitoring=monitoring), out, ALONE
    )
    stored, _ = run.data.train.locate(np.empty(0, np.int64))
    read = type(stored).read

    def noting(self, indices, rngs=None):
        if self is stored:
            trained.update(pixel_hash(source[int(index)].image) for index in indices)
        return read(self, indices, rngs)

    with monkeypatch.context() as patch:
        patch.setattr(type(stored), "read", noting)
        run.train()
    assert trained
    result = finish_run(run, "completed", "imagegpt train", TrainingCallback())
    assert result.split == "validation split; it also chose the checkpoint"
    told = {one.name: one.nats for one in result.scores}
    places = ["photos.npz"] if kind == "crop" else ["photos.npz", "encoded"]
    for place in places:
        opened = open_for(place, out)
        assert opened.is_training_data
        mine = {one.name: one.nats for one in score_split(out, opened, split=opened.choose_split())}
        assert mine == pytest.approx(told, abs=1e-6)
        scored = {pixel_hash(source[int(row)].image) for row in opened.validation.indices}
        assert not trained & scored
    best = told["this model" if limited is None else "while training"]
    assert best == pytest.approx(run.state.best["loss"], abs=1e-6)
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert best == pytest.approx(min(line["validation"]["loss"] for line in logged if "validation" in line), abs=1e-6)
    rows = re.findall(r"^\| ([\w ]+) \([^|]*\| (\d\.\d{4}) \|$", (out / "README.md").read_text(), re.MULTILINE)
    assert dict(rows) == {name: f"{nats:.4f}" for name, nats in told.items()}
    code, text, err = run_cli(capsys, "evaluate", "./model", places[-1])
    assert (code, err) == (0, "")
    assert text.startswith(
        f"{len(run.data.validation)} images of {places[-1]}: validation split; it also chose the che"
    )
    assert all(f"{nats:.4f}" in text for nats in told.values())


@pytest.mark.parametrize(("seed", "validation", "kind"), QUICK)
def test_the_numbers_of_training_card_and_evaluation_agree(place, capsys, monkeypatch, seed, validation, kind):
    check_agreement(capsys, monkeypatch, seed, *validation, kind)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "validation", "kind"), [one for one in GRID if one not in QUICK])
def test_they_agree_whatever_the_recipe(place, capsys, monkeypatch, seed, validation, kind):
    check_agreement(capsys, monkeypatch, seed, *validation, kind)


def test_evaluate_never_scores_what_was_trained_on_whatever_the_seed(place, capsys):
    """It used to split with seed 0 and 4 %, whatever the run used: most of what it scored had been trained on."""
    run = Run(recipe({"train": "encoded", "split": {"validation": 0.3}}, training={"seed": 1}), Path("model"), ALONE)
    run.train()
    trained = {row.tobytes() for row in read_all_ids(run.data.train)}
    read = []
    with pytest.MonkeyPatch.context() as patch:
        score = scoring.score_model
        patch.setattr(scoring, "score_model", lambda m, ids, **options: read.append(ids) or score(m, ids, **options))
        assert run_cli(capsys, "evaluate", "./model", "encoded")[0] == 0
    (scored,) = read
    assert len(scored) == len(run.data.validation) > 5
    assert not trained & {row.tobytes() for row in scored}


def test_a_split_is_independent_of_the_trainings_seed(place):
    records = [
        Run(recipe({"train": "encoded"}, training={"seed": seed}), Path(f"m{seed}"), ALONE).data.record
        for seed in (0, 1)
    ]
    assert records[0] == records[1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("palette", "the palette ("),
        ("resize", "the preprocessing's resize_mode (crop, not squash)"),
        ("pixels", "the images of the train split changed"),
        ("order", "the order of the images of the train split"),
        ("labels", "the labels of the train split"),
        ("fewer", "the images of the train split ("),
    ],
)
def test_resuming_refuses_other_data_and_names_what_changed(place, change, told):
    """Only the recipe's text was compared: with another palette a run went on as if nothing had happened."""
    Run(recipe({"train": "encoded", "split": {"validation": 0.2}}), Path("model"), ALONE).train()
    before = {path: path.read_bytes() for path in Path("model").rglob("*") if path.is_file()}
    content = np.load("photos.npz")
    pixels, labels, processor = (
        content["images"].copy(),
        content["labels"].copy(),
        ImageGPTImageProcessor(PALETTE, size=8),
    )
    if change == "palette":
        processor = ImageGPTImageProcessor(ColorPalette.grey(16), size=8)
    elif change == "resize":
        processor = ImageGPTImageProcessor(PALETTE, size=8, resize_mode="squash")
    elif change == "pixels":
        pixels = changed_in_training(pixels)
    elif change == "order":
        pixels, labels = pixels[::-1], labels[::-1]
    elif change == "labels":
        labels = (labels + 1) % 3
    else:
        pixels, labels = pixels[2:], labels[2:]
    np.savez("photos.npz", images=pixels, labels=labels)
    shutil.rmtree("encoded")
    encode("photos.npz", "encoded", processor)
    with pytest.raises(ValueError, match="holds a run with other data: ") as caught:
        Run(recipe({"train": "encoded", "split": {"validation": 0.2}}), Path("model"), ALONE)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in Path("model").rglob("*") if path.is_file()} == before
    Run(recipe({"train": "encoded", "split": {"validation": 0.2}}), Path("model"), ALONE, force=True)


def changed_in_training(pixels):
    """The pictures with another one in place of one to train on, which is to train on, too."""
    hashes = np.array([pixel_hash(one) for one in pixels], np.uint64)
    for row in split_by_hash(hashes, seed=0, validation=0.2)["train"]:
        changed = hashes.copy()
        changed[row] = pixel_hash(255 - pixels[row])
        if row in split_by_hash(changed, seed=0, validation=0.2)["train"]:
            pixels[row] = 255 - pixels[row]
            return pixels
    raise AssertionError("one in five is for validation")


def test_a_run_without_a_record_is_not_resumed(place):
    Run(recipe({"train": "encoded"}), Path("model"), ALONE)
    (place / "model" / "data.json").unlink()
    with pytest.raises(FileExistsError, match=r"holds a recipe.yaml without the data.json of a training run"):
        Run(recipe({"train": "encoded"}), Path("model"), ALONE)


def test_a_search_for_a_rate_refuses_other_data(place):
    search = LearningRateSearch(recipe({"train": "encoded"}), Path("rates"), ALONE)
    search.try_rate(0.01)
    shutil.rmtree("encoded")
    encode("photos.npz", "encoded", ImageGPTImageProcessor(ColorPalette.grey(16), size=8))
    with pytest.raises(ValueError, match=r"rates holds a search with other data: the palette \(.*\) changed; choose"):
        LearningRateSearch(recipe({"train": "encoded"}), Path("rates"), ALONE).try_rate(0.02)


def test_limited_validation_is_a_random_subset_of_all_classes(place):
    """The first rows of a sorted folder are of few classes."""
    rows = np.argsort(np.arange(NUM_IMAGES) % 3, kind="stable")
    content = np.load("photos.npz")
    np.savez("sorted.npz", images=content["images"][rows], labels=content["labels"][rows])
    encode("sorted.npz", "sorted", ImageGPTImageProcessor(PALETTE, size=8))
    wanted = recipe({"train": "sorted", "split": {"validation": 0.5}}, monitoring={"validation_images": 9})
    run = Run(wanted, Path("model"), ALONE)
    labels = run.data.monitored_validation.labels
    assert set(labels) == {0, 1, 2}
    again = Run(wanted, Path("model"), ALONE)
    assert (again.data.validation_indices == run.data.validation_indices).all()
    assert DataRecord.read(Path("model")).validation_subset["num_images"] == 9


def test_a_test_split_by_hash_is_scored_at_the_end(place, capsys):
    run = Run(recipe({"train": "encoded", "split": {"validation": 0.2, "test": 0.2}}), Path("model"), ALONE)
    run.train()
    result = finish_run(run, "completed", "imagegpt train", TrainingCallback())
    assert (result.split, result.num_images) == ("test split", len(run.data.test))
    mine = {one.name: one.nats for one in result.scores}
    theirs = {
        one.name: one.nats for one in score_split(Path("model"), open_for("photos.npz", Path("model")), split="test")
    }
    assert mine == pytest.approx(theirs, abs=1e-6)
    for split, words in (("validation", "validation split; it also"), ("train", "train split"), ("test", "test split")):
        code, out, _ = run_cli(capsys, "evaluate", "./model", "encoded", "--split", split)
        assert code == 0
        assert f"images of encoded: {words}" in out
    assert (
        "--all and --split test were given"
        in run_cli(capsys, "evaluate", "./model", "encoded", "--all", "--split", "test")[2]
    )


def test_other_data_and_other_models_say_what_is_assumed(place, capsys):
    run = Run(recipe({"train": "encoded", "split": {"validation": 0.3}}), Path("model"), ALONE)
    run.train()
    np.save("other.npy", np.random.default_rng(9).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    code, out, err = run_cli(capsys, "evaluate", "./model", "other.npy")
    assert code == 0
    assert re.match(r"\d+ images of other.npy: validation split ", out)
    assert err.startswith("other.npy is not the data that ./model was trained on, or has changed since: it is split")
    (place / "model" / "data.json").unlink()
    code, out, err = run_cli(capsys, "evaluate", "./model", "encoded")
    assert code == 0
    assert "chose" not in out
    assert err.startswith("./model has no data.json: it may have been trained on images of encoded")


def test_a_grown_source_keeps_its_splits(place):
    run = Run(recipe({"train": "encoded", "split": {"validation": 0.3}}), Path("model"), ALONE)
    run.train()
    trained = {row.tobytes() for row in read_all_ids(run.data.train)}
    content = np.load("photos.npz")["images"]
    np.save("grown.npy", np.concatenate([255 - content[:40], content]))
    data = open_for("grown.npy", Path("model"))
    assert not data.is_training_data
    held_out = {row.tobytes() for row in read_all_ids(data.validation)}
    assert {row.tobytes() for row in read_all_ids(run.data.validation)} < held_out
    assert not trained & held_out


def test_the_train_split_alone_is_not_held_out(place):
    """Of images that validated elsewhere none was held out from those to train on."""
    content = np.load("photos.npz")
    (place / "splits").mkdir()
    for name, rows in (("train", slice(0, 40)), ("val", slice(40, 50))):
        np.savez(place / "splits" / f"{name}.npz", images=content["images"][rows])
    encode("splits", "named", ImageGPTImageProcessor(PALETTE, size=8))
    Run(recipe({"train": "named"}), Path("model"), ALONE).train()
    alone = open_for("splits/train.npz", Path("model"))
    assert (list(alone.splits), alone.is_training_data) == (["train"], True)
    with pytest.raises(ValueError, match=r"splits/train.npz has no held-out split for this model, only train: choose"):
        alone.choose_split()
    validation = open_for("splits/val.npz", Path("model"))
    assert (list(validation.splits), len(validation.validation)) == (["validation"], 10)
    assert validation.describe("validation") == "validation split; it also chose the checkpoint"


@pytest.mark.parametrize("augmentation", ["flip", "reflect-crop-flip", "random-resized-crop"])
def test_what_is_not_augmented_is_not_augmented(place, augmentation):
    """The baselines counted over pictures that were augmented with seed 0."""
    data = {**PREPROCESSINGS["flip"], "augmentation": augmentation}
    run = Run(recipe(data), Path("model"), ALONE)
    still = Run(recipe({**data, "augmentation": "none"}), Path("other"), ALONE)
    if augmentation == "random-resized-crop":
        ids = run.data.train.read(np.arange(3))
        assert (ids == run.data.train.read(np.arange(3))).all()
        assert (read_all_ids(run.data.sources[0])[run.data.train.indices[:3]] == ids).all()
    else:
        assert (read_all_ids(run.data.train) == read_all_ids(still.data.train)).all()


@pytest.mark.parametrize("name", ["digits", "digits-bert"])
def test_bundled_digits_know_their_data(name):
    record = open_data(DataRecipe(train="digits")).record
    assert DataRecord.read(find_folder(name)) == record


@pytest.mark.parametrize("spoil", ["{", "[]", '{"kind": "cake"}', None])
def test_a_damaged_record_is_one_sentence(place, spoil):
    Run(recipe({"train": "encoded"}), Path("model"), ALONE)
    path = place / "model" / "data.json"
    if spoil is None:
        content = json.loads(path.read_text())
        del content["splits"]["train"]["content"]
        spoil = json.dumps(content)
    path.write_text(spoil)
    with pytest.raises(ValueError, match=r"data.json was not written by imagegpt or is damaged.*get it again"):
        DataRecord.read(place / "model")


def test_a_record_names_no_paths(place):
    Run(recipe({"train": str(place / "encoded")}), Path("model"), ALONE)
    assert str(place) not in (place / "model" / "data.json").read_text()


def test_a_classifier_is_split_as_its_model_was(place):
    Run(recipe({"train": "encoded", "split": {"validation": 0.3, "seed": 8}}), Path("model"), ALONE).train()
    chosen = finetuning_recipe("./model", "photos.npz", None)
    assert (chosen.data.split.seed, chosen.data.split.validation) == (8, 0.3)
