"""Class folders that were renamed, swapped, emptied or forgotten are noticed, with the names of the classes."""

import shutil
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from imagegpt import ColorPalette, ImageGPTImageProcessor
from imagegpt.data.identity import class_changes
from imagegpt.data.loading import open_data, open_data_for_model
from imagegpt.data.recipe import DataRecipe
from imagegpt.data.sources.registry import open_images
from imagegpt.jobs.encode import encode
from imagegpt.training.factory import build_model
from imagegpt.training.recipe_io import parse_recipe

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
PALETTE = ColorPalette.grey(8)
PROCESSOR = ImageGPTImageProcessor(PALETTE, size=4)


def write(folder, pixels=PIXELS, classes=("ant", "bee", "cat", "dog")):
    """Ten pictures of each class."""
    for index, image in enumerate(pixels):
        path = folder / classes[index // 10] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


@pytest.fixture
def photos(tmp_path):
    write(tmp_path / "photos")
    PALETTE.save(tmp_path / "palette.npy")
    return tmp_path / "photos"


def opened(place, **fields):
    fields = {"split": {"validation": 0.2}, **fields}
    return open_data(DataRecipe(train=str(place), palette=str(place.parent / "palette.npy"), side=4, **fields))


def notes_of(place, record):
    return [
        note for note in open_data_for_model(str(place), "m", PROCESSOR, record).notes if "other classes than" in note
    ]


def test_other_classes_in_words():
    assert class_changes(["a", "b"], ["a", "c"]) == "b is missing; c is new"
    assert class_changes(["a", "b", "c"], ["c"]) == "a, b are missing"
    assert class_changes(["a"], list("abcdef")) == "b, c, d and 2 more are new"
    assert class_changes(["a", "b"], ["b", "a"]) == "their order has changed"
    assert class_changes(["a"], None) == "there are none"
    assert class_changes(None, ["a"]) == "there were none"


def test_a_class_that_was_renamed_is_noticed_when_a_model_is_scored(photos):
    record = opened(photos).record
    assert notes_of(photos, record) == []
    (photos / "dog").rename(photos / "hound")
    assert notes_of(photos, record) == [
        f"{photos} has other classes than the training data of m: dog is missing; hound is new"
    ]


def test_so_is_one_that_is_missing(photos):
    record = opened(photos).record
    shutil.rmtree(photos / "bee")
    assert notes_of(photos, record) == [f"{photos} has other classes than the training data of m: bee is missing"]


def test_the_classes_of_other_images_are_their_own_affair(photos, tmp_path):
    record = opened(photos).record
    write(tmp_path / "others", 255 - PIXELS, classes=("e", "f", "g", "h"))
    shutil.rmtree(tmp_path / "others" / "h")
    assert notes_of(tmp_path / "others", record) == []


def test_other_labels_of_the_same_images_are_noticed(tmp_path, photos):
    """Classes that are numbers cannot be renamed, but exchanged."""
    labels = np.arange(40) // 10
    for name, given in (("a", labels), ("b", 3 - labels)):
        np.savez(tmp_path / f"{name}.npz", images=PIXELS, labels=given)
        encode(tmp_path / f"{name}.npz", tmp_path / name, PROCESSOR)
    record = open_data(DataRecipe(train=str(tmp_path / "a"))).record
    notes = {name: open_data_for_model(str(tmp_path / name), "m", PROCESSOR, record).notes for name in ("a", "b")}
    assert notes["a"] == []
    assert "images of the train split have other labels than in the training of m" in notes["b"]


def test_a_resumed_run_names_the_classes(photos):
    record = opened(photos).record
    (photos / "dog").rename(photos / "hound")
    assert "the classes (dog is missing; hound is new)" in record.differences(opened(photos).record)


def test_validation_from_another_folder_has_the_same_classes(photos, tmp_path):
    """Labels of a folder that lacks one of them were counted from its own first class: all were wrong."""
    write(tmp_path / "others", 255 - PIXELS)
    shutil.rmtree(photos / "ant")
    refusal = r"^data\.train and data\.validation differ in their classes \(ant is new\): give"
    with pytest.raises(ValueError, match=refusal):
        opened(photos, validation=str(tmp_path / "others"), split={})
    shutil.rmtree(tmp_path / "others" / "ant")
    assert opened(photos, validation=str(tmp_path / "others"), split={}).classes == ["bee", "cat", "dog"]


def classifier(place, **fields):
    given = {"train": str(place), "palette": str(place.parent / "palette.npy"), "side": 4, **fields}
    content = {"model": {"n_layer": 1, "n_embd": 8, "n_head": 1}, "data": given, "training": {"num_steps": 200}}
    recipe = parse_recipe({**content, "objective": {"name": "classification"}})
    return build_model(recipe, open_data(recipe.data))


def test_a_class_without_training_images_is_refused(photos):
    """Whether they are broken, held out, or in the test part as well."""
    assert cast(Any, classifier(photos, split={"validation": 0.2}).model).config.num_labels == 4
    for path in (photos / "cat").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"photos has no image of cat to train on, apart from broken and held-out"):
        classifier(photos, max_broken=0.5)
    shutil.rmtree(photos / "cat")
    with pytest.raises(ValueError, match=r"photos has no image of \w+ to train on"):
        classifier(photos, split={"validation": 0.95})
    write(photos.parent / "test", 255 - PIXELS)
    shutil.rmtree(photos.parent / "test" / "cat")
    shutil.rmtree(photos.parent / "test" / "dog")
    shutil.copytree(photos / "dog", photos.parent / "test" / "dog")
    with pytest.raises(ValueError, match=r"photos has no image of dog to train on"):
        classifier(photos, test=str(photos.parent / "test"))


def test_a_model_without_classes_needs_none(photos):
    for path in (photos / "cat").iterdir():
        path.write_bytes(b"x")
    assert len(opened(photos, max_broken=0.5).train) > 20


def test_an_empty_folder_beside_classes_is_refused(photos, tmp_path):
    """It became no class at all, without a word."""
    (photos / "emu").mkdir()
    (photos / "emu" / ".DS_Store").touch()
    with pytest.raises(ValueError, match=r"photos/emu is empty: a class needs images to train on, add some or remove"):
        open_images(photos)
    (photos / "emu" / "notes.txt").touch()
    assert open_images(photos).classes == ["ant", "bee", "cat", "dog"]
    (tmp_path / "flat" / "empty").mkdir(parents=True)
    Image.fromarray(PIXELS[0]).save(tmp_path / "flat" / "a.png")
    assert open_images(tmp_path / "flat").classes is None
