"""Suggested commands work when pasted, and refer to what was just created, whatever its name."""

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagegpt import ColorPalette
from imagegpt.checkpoints.tensor_bundle import write_bundle
from openai_oracle import random_variables

TINY = [
    f"--set={change}"
    for change in (
        "model.n_layer=1", "model.n_embd=8", "model.n_head=1", "training.num_steps=2", "training.warmup_steps=0",
        "training.batch_size=2", "training.precision=float32", "monitoring.validate_every=2",
        "monitoring.checkpoint_every=2",
        "monitoring.samples=0", "monitoring.validation_images=4",
    )
]  # fmt: skip


@pytest.fixture
def follow(run):
    """Run a command and return the arguments of the suggested one, without `imagegpt`."""

    def call(*words):
        status, _, err = run(*words)
        assert status == 0, err
        suggested = err.splitlines()[-1].partition("Next: ")[2]
        first, *rest = shlex.split(suggested)
        assert first == "imagegpt"
        return rest

    return call


@pytest.mark.parametrize("name", ["digits", "cifar10", "a model's", "owner"])
def test_train_suggests_the_trained_model(run, workplace, follow, name):
    pasted = follow("train", "digits", "--out", name, *TINY)
    status, _, err = run(*pasted, "--num", 1)
    assert status == 0, err
    status, out, _ = run("info", pasted[-1])
    assert status == 0
    assert str(Path(pasted[-1]).resolve()) in out.replace(pasted[-1], str(Path(pasted[-1]).resolve()))
    assert "1, 8, 1" in out  # blocks, width, heads: not the bundled model's
    with Image.open("samples.png") as drawn:
        assert Path(drawn.text["model"]).samefile(name)


def test_from_images_to_samples_by_pasting_suggestions(run, workplace, follow):
    source = workplace / "my pictures"
    source.mkdir()
    for index, image in enumerate(np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)):
        Image.fromarray(image).save(source / f"{index:02d}.png")
    (workplace / "encoded").mkdir()  # a name that is taken
    (workplace / "model").mkdir()
    pasted = follow("palette", "fit", "my pictures", "--out", "digits", "--colors", 6, "--size", 4)
    folder = Path(pasted[2])
    pasted = follow(*pasted)
    assert ColorPalette.load(folder) == ColorPalette.load("digits")
    pasted = follow(*pasted, *TINY)
    assert run(*pasted, "--num", 2)[0] == 0
    assert ColorPalette.load(pasted[-1]) == ColorPalette.load("digits")


@pytest.mark.parametrize("name", ["digits", "2024", "a: b", "[x] #1", "-x", "it's"])
def test_encode_suggests_training_on_the_encoding(run, workplace, follow, name):
    (workplace / "src").mkdir()
    for index, image in enumerate(np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)):
        Image.fromarray(image).save(workplace / "src" / f"{index:02d}.png")
    ColorPalette.grey(5).save(workplace / "grey.npy")
    pasted = follow("encode", "src", "--palette", "grey.npy", "--size", 4, "--", name)
    assert follow(*pasted, *TINY) == ["sample", "--model", "./model"]
    assert ColorPalette.load("model") == ColorPalette.grey(5)


def test_finetune_suggests_the_classifier(run, workplace, follow):
    sets = [word for word in TINY if "model." not in word]
    pasted = follow("finetune", "digits", "digits", "--out", "digits", *sets)
    status, out, _ = run(*pasted)
    assert status == 0
    assert pasted[1] == "./digits"
    assert "./digits" in out


def test_convert_and_export_suggest_their_results(run, workplace, follow):
    write_bundle("ar", random_variables())
    ColorPalette.grey(11).save(workplace / "kmeans_centers.npy")
    converted = follow("convert", "openai", "ar", "digits")
    assert converted == ["info", "./digits"]
    assert run(*converted)[0] == 0
    again = follow("convert", "transformers", "digits", "my model")
    assert again == ["info", "./my model"]
    assert run(*again)[0] == 0
    exported = follow("export", "openai", "./digits", "cifar10")
    status, out, _ = run(*exported)
    assert status == 0
    assert "model/wpe" in out
