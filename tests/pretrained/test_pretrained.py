"""The weights that ship inside the package, and the examples beside them."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.imagegpt.modeling_imagegpt import ImageGPTForCausalImageModeling as Reference

import imagegpt
from helpers import card_scores, digit_ids
from imagegpt import ColorPalette, ImageGPTForCausalImageModeling, ImageGPTImageProcessor, ImageGPTPipeline
from imagegpt.data.loading import open_data
from imagegpt.data.recipe import DataRecipe
from imagegpt.data.sources.digits import load_digits
from imagegpt.evaluation.baselines import NeighbourModel, PositionHistogram
from imagegpt.evaluation.likelihood import mean_nll
from imagegpt.evaluation.scoring import masked_nats
from imagegpt.sampling import fill

FOLDER = Path(imagegpt.__file__).parent / "pretrained" / "digits"
EXAMPLES = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture(scope="module")
def model():
    return ImageGPTForCausalImageModeling.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def processor():
    return ImageGPTImageProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def card():
    return card_scores(FOLDER)


def test_folder_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert set(files) == {
        "README.md",
        "config.json",
        "data.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert sum(files.values()) < 3_000_000


def test_card_states_likelihoods(card, model):
    train, validation, test = (digit_ids(split).numpy() for split in ("train", "validation", "test"))
    histogram = PositionHistogram(train, validation, num_colors=17)
    neighbours = NeighbourModel(train, validation, num_colors=17, side=8)
    expected = {
        "this": mean_nll(model, digit_ids("test")),
        "neighbours": neighbours.pixel_nll(test).mean(),
        "histogram": histogram.pixel_nll(test).mean(),
        "uniform": np.log(17),
    }
    assert card == {name: pytest.approx(nats, abs=6e-5) for name, nats in expected.items()}
    assert expected["this"] < expected["neighbours"] - 0.2
    assert expected["this"] < expected["histogram"] - 0.35


def test_transformers_loads_and_matches(model):
    reference = Reference.from_pretrained(FOLDER).eval()
    ids = digit_ids("test")[:8]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, rtol=0, atol=1e-4)


def test_the_processor_is_exact_on_all_the_data(processor):
    assert processor.palette == ColorPalette.grey(17)
    for split in ("train", "validation", "test"):
        ids = digit_ids(split)
        images = processor.decode(ids)
        assert images[0].mode == "L"
        np.testing.assert_array_equal(processor(images, return_tensors="pt")["input_ids"], ids)


def test_the_examples_are_test_images_to_the_pixel(processor):
    paths = sorted(EXAMPLES.glob("*.png"))
    assert len(paths) == 8
    labels, test = set(), load_digits()["test"]
    for path in paths:
        label, row = map(int, re.fullmatch(r"digit_(\d)_test(\d{4})", path.stem).groups())
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (8, 8))
            grey = np.asarray(image)
        ids = test.levels[row].astype(np.int64)
        np.testing.assert_array_equal(grey, np.rint(ids * 255 / 16).reshape(8, 8))
        np.testing.assert_array_equal(processor(path)["input_ids"][0], ids)
        np.testing.assert_array_equal(np.asarray(processor.decode(ids)[0]), grey)
        assert test.labels[row] == label
        labels.add(label)
    assert len(labels) == 8


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_training_command_reproduces_the_model(card, tmp_path, capsys):
    """Training with another seed gives the same quality, within noise."""
    from imagegpt.cli import main

    with pytest.raises(SystemExit) as stop:
        main(["train", "digits", "--out", str(tmp_path / "again"), "--set", "training.seed=1"])
    assert stop.value.code == 0
    again = ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "again")
    assert mean_nll(again, digit_ids("test")) == pytest.approx(card["this"], abs=0.02)


BERT = FOLDER.with_name("digits-bert")


def test_bidirectional_model_matches_its_card():
    """Its likelihood of hidden pixels, with the masks used for the card, and of both baselines."""
    assert sum(path.stat().st_size for path in BERT.iterdir()) < 3_000_000
    nats = masked_nats(BERT, open_data(DataRecipe(train="digits")).test, probability=0.15)
    card = card_scores(BERT)
    assert nats == pytest.approx(card["this"], abs=2e-4)
    assert nats < min(card["neighbours"], card["histogram"])


def test_the_bidirectional_model_fills_hidden_halves():
    """The samples are much closer to the true half than to that of another digit."""
    pipe = ImageGPTPipeline.from_pretrained("digits-bert")
    ids = digit_ids("test")[:40]
    hidden = torch.zeros(40, 64, dtype=torch.bool)
    hidden[:, 32:] = True
    filled = fill(pipe.model, ids, hidden, seeds=list(range(40)))
    assert filled[:, :32].equal(ids[:, :32])
    apart = (filled[:, 32:].float() - ids[:, 32:].float()).square().mean()
    others = (filled[:, 32:].float() - ids[:, 32:].roll(1, 0).float()).square().mean()
    assert apart < 0.75 * others
