"""Data sets of the hub, without a network: local folders in the hub's format, and what the library is asked for."""

import pickle

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features

from imagegpt.data.encoded import EncodedDataset
from imagegpt.data.hashing import source_fingerprint, source_stamp
from imagegpt.data.opened_data import open_for_training
from imagegpt.data.recipe import DataRecipe
from imagegpt.data.sources.hub_location import HubLocation
from imagegpt.data.sources.registry import list_splits, open_images
from imagegpt.jobs.encode import encode

pytestmark = pytest.mark.usefixtures("own_cache")

LABELS = [3, 1, 2, 0, 1, 1]


@pytest.fixture
def cells(rgb, png):
    """Six images as the hub keeps them."""
    return [{"bytes": png(image), "path": f"{index}.png"} for index, image in enumerate(rgb[:6])]


@pytest.fixture
def folder(tmp_path, cells, monkeypatch):
    """A folder in the hub's format with two configurations; the second has two columns of images."""
    monkeypatch.chdir(tmp_path)
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=["a", "b", "c", "d"])})
    small = Dataset.from_dict({"image": cells, "label": LABELS}, features)
    (tmp_path / "photos").mkdir()
    small.select(range(4)).to_parquet(tmp_path / "photos/small-train.parquet")
    small.select([4, 5]).to_parquet(tmp_path / "photos/small-test.parquet")
    features = Features({"photo": datasets.Image(), "mask": datasets.Image()})
    large = Dataset.from_dict({"photo": cells[3:], "mask": cells[:3]}, features)
    large.to_parquet(tmp_path / "photos/large-train.parquet")
    (tmp_path / "photos/README.md").write_text("""---
configs:
- config_name: small
  default: true
  data_files:
  - {split: train, path: small-train.parquet}
  - {split: test, path: small-test.parquet}
- config_name: large
  data_files:
  - {split: train, path: large-train.parquet}
---
""")
    return "hub:./photos"


def read(source):
    return np.stack([np.asarray(source[index].image) for index in range(len(source))])


@pytest.mark.parametrize("streaming", ["", "&streaming=1"])
def test_configurations_splits_and_columns(folder, rgb, streaming):
    assert list_splits(folder) == ["train", "test"]
    assert list_splits(f"{folder}?config=large") == ["train"]
    small = open_images(f"{folder}?config=small{streaming}", split="train")
    assert np.array_equal(read(small), rgb[:4])
    assert (small.classes, small.labels.tolist()) == (["a", "b", "c", "d"], LABELS[:4])
    assert [small[index].label for index in range(4)] == LABELS[:4]
    large = open_images(f"{folder}?config=large&column=mask{streaming}", split="train")
    assert np.array_equal(read(large), rgb[:3])
    assert np.array_equal(read(pickle.loads(pickle.dumps(large))), rgb[:3])
    with pytest.raises(ValueError, match=r"has several columns of images \(photo, mask\)"):
        open_images(f"{folder}?config=large{streaming}", split="train")
    with pytest.raises(ValueError, match=r"has no column of images 'label': its columns of images are image"):
        open_images(f"{folder}?column=label{streaming}", split="train")


def test_a_stream_may_be_read_in_any_order(folder, rgb):
    source = open_images(f"{folder}?streaming=1", split="train")
    assert source.is_sequential
    for index in (2, 3, 0, 0, 1, 3):
        assert np.array_equal(np.asarray(source[index].image), rgb[index])
    with pytest.raises(IndexError, match="there is no image 4 in "):
        source[4]


def test_a_stream_is_identified_without_reading_it(folder, monkeypatch):
    source = open_images(f"{folder}?streaming=1", split="train")
    monkeypatch.setattr(type(source), "labels", property(lambda self: pytest.fail("the stream was read")))
    assert source_fingerprint(source) == source_stamp(source) == source.fingerprint
    assert source.fingerprint != open_images(f"{folder}?streaming=1", split="test").fingerprint


def test_a_stream_is_encoded_like_the_download(folder, tmp_path, processor):
    for name in ("?config=small", "?config=small&streaming=1"):
        encode(f"{folder}{name}", tmp_path / f"out{len(name)}", processor, split="train")
    a, b = (EncodedDataset(tmp_path / f"out{length}") for length in (13, 25))
    assert np.array_equal(a.read(range(4)), b.read(range(4)))
    assert (a.hashes == b.hashes).all()
    assert a.labels.tolist() == b.labels.tolist() == LABELS[:4]


def test_a_stream_is_not_trained_on(folder, tmp_path, palette):
    palette.save(tmp_path / "palette.npy")
    recipe = DataRecipe(train=f"{folder}?streaming=1", palette=str(tmp_path / "palette.npy"), side=8)
    with pytest.raises(ValueError, match=r"is a stream, which can only be read in order: encode it first"):
        open_for_training(recipe)


def test_broken_cells_of_a_stream_are_the_callers_to_count(tmp_path, cells, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells[1] = {"bytes": b"text", "path": "x.png"}
    (tmp_path / "photos").mkdir()
    Dataset.from_dict({"image": cells}, Features({"image": datasets.Image()})).to_parquet("photos/train.parquet")
    source = open_images("hub:./photos?streaming=1", split="train")
    with pytest.raises(ValueError, match=r"^row 1 is not an image that Pillow can read"):
        source[1]
    assert source[2].label is None


def test_what_the_hub_is_asked_for(tmp_path, monkeypatch, cells, rgb):
    monkeypatch.chdir(tmp_path)
    Dataset.from_dict({"image": cells}, Features({"image": datasets.Image()})).save_to_disk(tmp_path / "cached")
    asked = []

    def load(path, **options):
        asked.append((path, options))
        return datasets.load_from_disk(tmp_path / "cached")

    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, **options: ["test", "train"])
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list_splits("owner/photos") == ["train", "test"]
    source = open_images("owner/photos", split="test")
    assert np.array_equal(read(source), rgb[:6])
    assert (source.name, source.split) == ("owner/photos", "test")
    open_images("hub:owner/photos?config=big&revision=v1.2", split="train")
    open_images("owner/photos?config=big", split="train")
    assert asked == [
        ("owner/photos", {"name": None, "revision": None, "split": "test"}),
        ("owner/photos", {"name": "big", "revision": "v1.2", "split": "train"}),
        ("owner/photos", {"name": "big", "revision": None, "split": "train"}),
    ]


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("hub:a/b?kind=x", "has the option 'kind', which is unknown: give config, revision, column, streaming"),
        ("hub:a/b?config=x&config=y", "has the option 'config', which is given twice"),
        ("hub:a/b?config=", "has the option 'config', which is empty"),
        ("hub:a/b?streaming=maybe", "has streaming=maybe: give streaming=1 or streaming=0"),
        ("hub:a/b?trust_remote_code=1", "has the option 'trust_remote_code', which is unknown"),
    ],
)
def test_bad_options_are_one_sentence(location, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        open_images(location, split="train")


def test_options_are_parsed():
    assert HubLocation.parse("owner/name") == HubLocation(name="owner/name")
    location = "hub:/data/my%20photos?config=a%26b&revision=refs/pr/1&column=image&streaming=true"
    expected = HubLocation(name="/data/my%20photos", config="a&b", revision="refs/pr/1", column="image", streaming=True)
    assert HubLocation.parse(location) == expected


def test_the_hub_out_of_reach_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConnectionError) as caught:
        open_images("owner/pictures", split="train")
    told = "owner/pictures does not exist here, and a data set of that name cannot be loaded from the hub ("
    assert str(caught.value).startswith(told)
    assert str(caught.value).endswith("): check the name and the network, or give a folder")
    assert "\n" not in str(caught.value)
