"""Reading what was encoded: the right rows, without reading the others, and nothing that does not belong together."""

import json
import pickle
import shutil

import numpy as np
import pytest

from imagegpt import ColorPalette, ImageGPTImageProcessor
from imagegpt.data.encoded import EncodedDataset
from imagegpt.jobs.encode import encode


@pytest.fixture(scope="module")
def folder(tmp_path_factory, rgb, processor):
    """Thirty images in shards of seven."""
    place = tmp_path_factory.mktemp("encoded")
    np.savez(place / "a.npz", images=rgb, labels=np.arange(30) % 4)
    encode(place / "a.npz", place / "out", processor, shard_size=7)
    return place / "out"


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "out")


def test_any_rows_in_any_order(folder, rgb, processor):
    encoded, expected = EncodedDataset(folder), processor(rgb)["input_ids"]
    assert len(encoded) == 30
    for indices in ([0], [29], [6, 7, 13, 14], [28, 3, 3, 21, 0], range(30), np.arange(29, -1, -1, dtype=np.uint8)):
        rows = encoded.read(indices)
        assert rows.dtype == np.int64
        assert np.array_equal(rows, expected[np.asarray(indices)])
    assert encoded.read([]).shape == (0, 64)
    shuffled = np.random.default_rng(0).permutation(30)
    assert np.array_equal(encoded.read(shuffled), expected[shuffled])


def test_its_attributes(folder, processor, palette):
    encoded = EncodedDataset(str(folder))
    assert (encoded.num_pixels, encoded.size, encoded.class_names, encoded.split) == (64, (8, 8), None, None)
    assert encoded.classes == ["0", "1", "2", "3"]
    assert encoded.labels.tolist() == [index % 4 for index in range(30)]
    assert encoded.indices.tolist() == list(range(30))
    assert (encoded.labels.dtype, encoded.indices.dtype) == (np.int64, np.int64)
    assert not encoded.hashes.flags.writeable
    assert encoded.palette == palette
    assert encoded.processor.to_dict() == processor.to_dict()


def test_height_and_width(tmp_path, rgb, palette):
    np.save(tmp_path / "a.npy", rgb)
    processor = ImageGPTImageProcessor(palette, size=(4, 6))
    encode(tmp_path / "a.npy", tmp_path / "out", processor)
    encoded = EncodedDataset(tmp_path / "out")
    assert (encoded.size, encoded.num_pixels) == ((4, 6), 24)
    assert np.array_equal(encoded.read([2, 1]), processor(rgb[[2, 1]])["input_ids"])


def test_rows_are_views_of_the_files_and_copies_map_them_anew(folder):
    encoded = EncodedDataset(folder)
    assert all(not ids.flags.owndata and not ids.flags.writeable for ids in encoded._ids)
    content = pickle.dumps(encoded)
    assert len(content) < 1000
    copy = pickle.loads(content)
    assert np.array_equal(copy.read([5, 29]), encoded.read([5, 29]))


def test_one_split_of_several(tmp_path, processor):
    digits = ImageGPTImageProcessor(ColorPalette.grey(17), size=8)
    encode("digits", tmp_path / "out", digits)
    validation = EncodedDataset(tmp_path / "out", "val")
    assert (len(validation), validation.split, validation.classes) == (140, "validation", list("0123456789"))
    assert len(pickle.loads(pickle.dumps(validation))) == 140
    assert len(EncodedDataset(tmp_path / "out" / "train")) == 1297
    assert len(EncodedDataset(tmp_path / "out" / "train", "train")) == 1297
    with pytest.raises(ValueError, match=r"out has the splits train, validation, test: choose one"):
        EncodedDataset(tmp_path / "out")
    with pytest.raises(ValueError, match=r"out/train has no split 'test': choose one of train"):
        EncodedDataset(tmp_path / "out" / "train", "test")
    shutil.rmtree(tmp_path / "out" / "test")
    with pytest.raises(FileNotFoundError, match=r"out/test holds no encoded images: encode them again"):
        EncodedDataset(tmp_path / "out", "test")


def rewrite(name, **changes):
    def spoil(out):
        path = out / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def other_palette(out):
    ImageGPTImageProcessor(ColorPalette.grey(64), size=8).save_pretrained(out)


def swap(out):
    """The last shard has two images, the others seven."""
    shutil.copy(out / "data-00004-of-00005.arrow", out / "data-00001-of-00005.arrow")


def cut(out):
    path = out / "data-00001-of-00005.arrow"
    path.write_bytes(path.read_bytes()[:1500])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "there is no folder OUT: encode images into it first (imagegpt encode)"),
        (lambda out: (out / "encoding.json").unlink(), "OUT holds no encoded images, or not all of them: (re)start"),
        (rewrite("encoding.json", finished=False), "encoding into OUT did not finish: run the same"),
        (rewrite("encoding.json", kind="cake"), "OUT/encoding.json was not written by imagegpt or is damaged"),
        (
            rewrite("encoding.json", shard_size=0),
            "OUT/encoding.json is damaged: shard_size is 0: it must be an integer",
        ),
        (
            lambda out: (out / "preprocessor_config.json").unlink(),
            "there is no palette at OUT/preprocessor_config.json",
        ),
        (other_palette, "the palette in OUT/preprocessor_config.json is "),
        (lambda out: (out / "data-00003-of-00005.arrow").unlink(), "OUT/data-00003-of-00005.arrow is missing: run"),
        (
            lambda out: (out / "data-00003-of-00005.arrow").write_bytes(b""),
            "OUT/data-00003-of-00005.arrow is damaged (",
        ),
        (cut, "OUT/data-00001-of-00005.arrow is damaged ("),
        (swap, "OUT/data-00001-of-00005.arrow is damaged (its SHA-256 is not the recorded one): run the"),
        (
            rewrite("encoding.json", processor={"size": {"height": 8, "width": 9}}),
            "OUT/data-00000-of-00005.arrow is damaged (its columns are not those of this encoding), ",
        ),
    ],
)
def test_what_does_not_belong_together_is_one_sentence(copy, spoil, message):
    spoil(copy)
    with pytest.raises((ValueError, OSError)) as caught:
        EncodedDataset(copy)
    assert str(caught.value).replace(str(copy), "OUT").startswith(message)
    assert "\n" not in str(caught.value)


def test_a_long_fingerprint_is_not_repeated_whole(copy):
    rewrite("encoding.json", palette="a" * 10_000)(copy)
    with pytest.raises(ValueError, match=f"were encoded with {'a' * 40}: restore the original file"):
        EncodedDataset(copy)
