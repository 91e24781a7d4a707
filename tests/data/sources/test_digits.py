import hashlib

import numpy as np
import pytest
from sklearn import datasets

from imagegpt.data.sources.digits import load_data, load_digits


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_the_split_is_pinned(digits):
    """Whoever reports a test likelihood must mean these images, whatever the library versions."""
    pixels = digits.test.ids.numpy().astype(np.uint8).tobytes()
    assert hashlib.sha256(pixels).hexdigest() == "135897cf7febb5e21fcfb2094ec7b9eddd0bb7f3d174e198dc1486294c3c4f6b"
    indices = digits.test.indices.numpy().astype("<u2").tobytes()
    assert hashlib.sha256(indices).hexdigest() == "f30711a810cc4b22bf8d6cf86774d3926cfcf8839f6323e1d85d053a2ab22c14"
    indices = digits.validation.indices.numpy().astype("<u2").tobytes()
    assert hashlib.sha256(indices).hexdigest() == "c9391aa3e38aa9eca0b1a516c80f224b5b998834c2d2c2d351f04822b48a35fb"


def test_the_parts_are_disjoint_and_complete(digits):
    parts = (digits.train, digits.validation, digits.test)
    assert [len(part) for part in parts] == [1297, 140, 360]
    indices = np.concatenate([part.indices.numpy() for part in parts])
    assert sorted(indices.tolist()) == list(range(1797))
    images = np.concatenate([part.ids.numpy() for part in parts])
    assert len(np.unique(images, axis=0)) == 1797  # so no part holds a copy of another's image


def test_each_class_is_held_out_alike(digits):
    assert np.bincount(digits.test.labels.numpy()).tolist() == [36] * 10
    assert np.bincount(digits.validation.labels.numpy()).tolist() == [14] * 10


def test_images_and_labels_are_those_of_the_source(digits):
    source = datasets.load_digits()
    for part in (digits.train, digits.validation, digits.test):
        indices = part.indices.numpy()
        assert (np.diff(indices) > 0).all()
        np.testing.assert_array_equal(part.ids.numpy(), source["data"][indices])
        np.testing.assert_array_equal(part.labels.numpy(), source["target"][indices])


def test_the_split_does_not_depend_on_the_order_of_the_source(digits, monkeypatch):
    pixels, labels = datasets.load_digits(return_X_y=True)
    monkeypatch.setattr(datasets, "load_digits", lambda return_X_y: (pixels[::-1], labels[::-1]))
    backwards = load_digits()
    assert set(map(bytes, backwards.test.ids.numpy())) == set(map(bytes, digits.test.ids.numpy()))


def test_the_id_of_a_level_is_the_level(digits):
    palette = digits.palette
    grey = np.rint(np.arange(17) * 255 / 16).astype(np.uint8)
    rgb = np.repeat(grey[:, None], 3, axis=1)
    assert palette.encode(rgb).tolist() == list(range(17))
    np.testing.assert_array_equal(palette.decode(np.arange(17)), rgb)
    ids = digits.test.ids.numpy()
    np.testing.assert_array_equal(palette.encode(palette.decode(ids)), ids)


def test_data_by_name(digits):
    assert load_data("digits").test.ids.equal(digits.test.ids)
    with pytest.raises(ValueError, match=r"there is no data set 'mnist': choose one of digits$"):
        load_data("mnist")
