"""`imagegpt.evaluate`: a model and images by their names, to a result that can be printed or stored."""

import json
import math

import numpy as np
import pytest

import imagegpt
from helpers import card_scores
from imagegpt.checkpoints.loading import find_folder


@pytest.fixture(scope="module")
def evaluation():
    return imagegpt.evaluate("digits", "digits")


def test_the_bundled_model_on_its_test_images(evaluation):
    assert (evaluation.model, evaluation.data, evaluation.split) == ("digits", "digits", "test")
    assert (evaluation.num_images, evaluation.description) == (360, "test split")
    assert (list(evaluation.broken), list(evaluation.notes)) == ([], [])
    scores = {one.name: one.nats for one in evaluation.scores}
    assert list(scores) == ["digits", "neighbours", "histogram", "uniform"]
    card = card_scores(find_folder("digits"))
    assert scores["digits"] == pytest.approx(card["this"], abs=6e-5)
    assert scores["neighbours"] == pytest.approx(card["neighbours"], abs=6e-5)


def test_the_result_as_json(evaluation):
    result = json.loads(json.dumps(evaluation.to_dict()))
    assert result.keys() == {"model", "data", "split", "description", "num_images", "scores", "broken", "notes"}
    best = result["scores"][0]
    assert best.keys() == {"name", "nats_per_pixel", "bits_per_pixel", "note"}
    assert best["bits_per_pixel"] == pytest.approx(best["nats_per_pixel"] / math.log(2))


def test_another_split_and_all_images():
    progress = []
    result = imagegpt.evaluate(
        "digits", "digits", split="validation", progress=lambda done, total: progress.append((done, total))
    )
    assert (result.num_images, result.split) == (140, "validation")
    assert result.description == "validation split; it also chose the checkpoint"
    assert progress[0] == (0, 140)
    assert progress[-1] == (140, 140)
    with pytest.raises(ValueError, match=r"^all_images and split 'test' were given: give one of them$"):
        imagegpt.evaluate("digits", "digits", split="test", all_images=True)


def test_data_that_the_model_was_not_trained_on_come_with_a_note(tmp_path, rgb):
    np.save(tmp_path / "a.npy", rgb)
    result = imagegpt.evaluate("digits", tmp_path / "a.npy", all_images=True)
    assert (result.num_images, result.split) == (30, None)
    assert len(result.notes) == 1
    assert "is not the data that digits was trained on" in result.notes[0]
