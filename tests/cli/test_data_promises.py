"""Promises about data, tested through the commands. Regressions: each of these once gave a wrong number silently."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from imagegpt import ColorPalette, ImageGPTImageProcessor
from imagegpt.data import dataloader
from imagegpt.data.encoded import EncodedDataset
from imagegpt.evaluation import scoring
from imagegpt.training.distributed import DistributedContext
from imagegpt.training.recipe_io import read_recipe
from imagegpt.training.run import Run

RECIPE = """
model: {n_layer: 1, n_embd: 16, n_head: 2, use_bias: true}
data: {train: encoded}
training: {num_steps: 8, batch_size: 16, warmup_steps: 1, seed: 1}
monitoring: {validate_every: 4, checkpoint_every: 4, samples: 0}
"""
CROP = ["data.train=photos", "data.palette=pal.npy", "data.side=8", "data.augmentation=random-resized-crop"]
SETS = [word for change in CROP for word in ("--set", change)]


@pytest.fixture
def photos(run, workplace):
    """A hundred pictures in ten classes as "photos", their ids as "encoded", two palettes, and a recipe."""
    rng = np.random.default_rng(0)
    small = torch.from_numpy(rng.integers(0, 256, (100, 3, 3, 3)).astype(np.float32))
    large = torch.nn.functional.interpolate(small, (20, 30), mode="bilinear").permute(0, 2, 3, 1)
    for index, pixels in enumerate(large.to(torch.uint8).numpy()):
        path = workplace / "photos" / f"class{index // 10}" / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    ColorPalette.from_rgb(rng.integers(0, 256, (16, 3))).save("pal.npy")
    ColorPalette.grey(16).save("grey.npy")
    (workplace / "r.yaml").write_text(RECIPE)
    assert run("encode", "photos", "encoded", "--palette", "pal.npy", "--size", 8)[0] == 0
    return workplace / "photos"


def table(text):
    """name -> nats of a printed table."""
    cells = [[cell.strip() for cell in line.split("│")[1:3]] for line in text.splitlines() if line.startswith("│")]
    return {name: nats for name, nats in cells if nats}


def test_evaluate_never_scores_what_was_trained_on(run, photos, monkeypatch):
    trained, scored = set(), []
    load, score = dataloader._StepReader._load, scoring.score_model

    def noting_load(self, *arguments):
        batch = load(self, *arguments)
        trained.update(row.tobytes() for row in batch.ids.numpy())
        return batch

    monkeypatch.setattr(dataloader._StepReader, "_load", noting_load)
    assert run("train", "r.yaml", "--out", "m")[0] == 0
    monkeypatch.setattr(scoring, "score_model", lambda m, ids, **o: scored.append(ids) or score(m, ids, **o))
    assert run("evaluate", "./m", "encoded")[0] == 0
    assert len(trained) > 90
    (images,) = scored
    assert len(images)
    assert not trained & {row.tobytes() for row in images}


def test_another_palette_between_stop_and_resume_is_noticed(run, photos):
    assert run("train", "r.yaml", "--out", "m")[0] == 0
    shutil.rmtree("encoded")
    assert run("encode", "photos", "encoded", "--palette", "grey.npy", "--size", 8)[0] == 0
    status, _, err = run("train", "r.yaml", "--out", "m")
    assert status == 2
    assert "m holds a run with other data: the palette (" in err
    assert err.count("error:") == 1


@pytest.mark.parametrize("kind", ["picture", "array"])
def test_a_source_that_was_overwritten_is_not_nothing_new(run, photos, kind):
    encode = ["encode", "photos", "encoded"]
    if kind == "picture":
        Image.new("RGB", (30, 20), "red").save(photos / "class0" / "03.png")
    else:
        encode = ["encode", "a.npy", "array"]
        np.save("a.npy", np.zeros((9, 8, 8, 3), np.uint8))
        assert run(*encode, "--palette", "pal.npy", "--size", 8)[0] == 0
        np.save("a.npy", np.full((9, 8, 8, 3), 255, np.uint8))
    status, _, err = run(*encode, "--palette", "pal.npy", "--size", 8)
    assert status == 2
    assert "were encoded with another" in err


def test_limited_validation_is_of_all_classes(run, photos, monkeypatch):
    changes = ["data.validation=encoded", "monitoring.validation_images=50", "data.train=other"]
    for index in range(100):
        path = photos.parent / "others" / f"class{index // 10}" / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index, 0, 0)).save(path)
    assert run("encode", "others", "other", "--palette", "pal.npy", "--size", 8)[0] == 0
    recipe, context = read_recipe(photos.parent / "r.yaml", changes), DistributedContext(torch.device("cpu"))
    mine = Run(recipe, photos.parent / "m", context)
    seen, read = [], EncodedDataset.read_labels
    monkeypatch.setattr(
        EncodedDataset, "read_labels", lambda self, rows: seen.append(read(self, rows)) or read(self, rows)
    )
    mine._trainer._validate()
    labels = np.concatenate(seen)
    assert len(labels) == 50
    assert set(labels) == set(range(10))


@pytest.mark.parametrize("augmentation", ["reflect-crop-flip", "flip"])
def test_batches_that_are_not_augmented_are_not(photos, augmentation):
    changes = [*CROP[:3], f"data.augmentation={augmentation}"]
    recipe, context = read_recipe(photos.parent / "r.yaml", changes), DistributedContext(torch.device("cpu"))
    mine = Run(recipe, photos.parent / "m", context)
    ids = mine.data.train.read(np.arange(len(mine.data.train)))
    whole = ImageGPTImageProcessor(ColorPalette.load("pal.npy"), size=8)(sorted(photos.rglob("*.png")))["input_ids"]
    assert {row.tobytes() for row in ids} <= {row.tobytes() for row in whole}


def test_evaluate_has_the_preprocessing_of_the_run(run, photos):
    status, out, err = run("train", "r.yaml", "--out", "m", *SETS)
    assert status == 0, err
    status, again, err = run("evaluate", "./m", "photos")
    assert status == 0, err
    mine, theirs = table(out), table(again)
    assert theirs["./m"] == mine["this model"]
    assert {name: mine[name] for name in ("neighbours", "histogram")} == {
        name: theirs[name] for name in ("neighbours", "histogram")
    }
