import hashlib

import numpy as np
import pytest
from sklearn import datasets

from imagegpt.data.sources.digits import load_digits
from imagegpt.data.sources.registry import source_processor


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_the_split_is_pinned(digits):
    """A reported test likelihood must be of these images, whatever the library versions."""
    pixels = digits["test"].levels.tobytes()
    assert hashlib.sha256(pixels).hexdigest() == "135897cf7febb5e21fcfb2094ec7b9eddd0bb7f3d174e198dc1486294c3c4f6b"
    indices = digits["test"].indices.astype("<u2").tobytes()
    assert hashlib.sha256(indices).hexdigest() == "f30711a810cc4b22bf8d6cf86774d3926cfcf8839f6323e1d85d053a2ab22c14"
    indices = digits["validation"].indices.astype("<u2").tobytes()
    assert hashlib.sha256(indices).hexdigest() == "c9391aa3e38aa9eca0b1a516c80f224b5b998834c2d2c2d351f04822b48a35fb"


def test_the_splits_are_disjoint_and_complete(digits):
    assert {split: len(images.levels) for split, images in digits.items()} == {
        "train": 1297,
        "validation": 140,
        "test": 360,
    }
    indices = np.concatenate([images.indices for images in digits.values()])
    assert sorted(indices.tolist()) == list(range(1797))
    levels = np.concatenate([images.levels for images in digits.values()])
    assert len(np.unique(levels, axis=0)) == 1797  # so no split holds a copy of another's image


def test_as_many_images_of_each_class_are_held_out(digits):
    assert np.bincount(digits["test"].labels).tolist() == [36] * 10
    assert np.bincount(digits["validation"].labels).tolist() == [14] * 10


def test_images_and_labels_are_those_of_scikit_learn(digits):
    source = datasets.load_digits()
    for images in digits.values():
        assert (np.diff(images.indices) > 0).all()
        np.testing.assert_array_equal(images.levels, source["data"][images.indices])
        np.testing.assert_array_equal(images.labels, source["target"][images.indices])


def test_the_split_does_not_depend_on_the_order_of_the_source(digits, monkeypatch):
    pixels, labels = datasets.load_digits(return_X_y=True)
    monkeypatch.setattr(datasets, "load_digits", lambda return_X_y: (pixels[::-1], labels[::-1]))
    backwards = load_digits()
    assert set(map(bytes, backwards["test"].levels)) == set(map(bytes, digits["test"].levels))


def test_the_id_of_a_level_is_the_level(digits):
    palette = source_processor("digits").palette
    grey = np.rint(np.arange(17) * 255 / 16).astype(np.uint8)
    rgb = np.repeat(grey[:, None], 3, axis=1)
    assert palette.encode(rgb).tolist() == list(range(17))
    np.testing.assert_array_equal(palette.decode(np.arange(17)), rgb)
    ids = digits["test"].levels.astype(np.int64)
    np.testing.assert_array_equal(palette.encode(palette.decode(ids)), ids)
