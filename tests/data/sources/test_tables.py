"""Tables with pictures in them: parquet as on the hub, folders of save_to_disk, and names on the hub."""

import pickle
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from pyarrow import parquet

from imagegpt.data.sources.registry import list_splits, open_images

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def cells(rgb, png):
    """Six pictures as the hub keeps them."""
    return [{"bytes": png(image), "path": f"{index}.png"} for index, image in enumerate(rgb[:6])]


def table(cells, labels=(3, 1, 2, 0, 1, 1), column="image"):
    return pyarrow.table({"id": list(range(len(cells))), column: cells, "label": list(labels)[: len(cells)]})


def with_names(cells):
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=["a", "b", "c", "d"])})
    return Dataset.from_dict({"image": cells, "label": [3, 1, 2, 0, 1, 1]}, features)


def check(source, processor, rgb, labels=(3, 1, 2, 0, 1, 1)):
    ids = processor([source[index].image for index in range(len(source))])["input_ids"]
    assert np.array_equal(ids, processor(rgb)["input_ids"])
    assert [source[index].label for index in range(len(source))] == list(labels)


@pytest.mark.parametrize("column", ["image", "img", "pixels"])
def test_parquet(tmp_path, rgb, processor, cells, column):
    parquet.write_table(table(cells, column=column), tmp_path / "a.parquet")
    source = open_images(tmp_path / "a.parquet")
    check(source, processor, rgb[:6])
    assert (source.classes, source[4].name) == (None, "row 4 (4.png)")
    check(pickle.loads(pickle.dumps(source)), processor, rgb[:6])


def test_a_column_of_bare_bytes(tmp_path, rgb, processor, cells):
    parquet.write_table(table([cell["bytes"] for cell in cells]), tmp_path / "a.parquet")
    source = open_images(tmp_path / "a.parquet")
    check(source, processor, rgb[:6])
    assert source[2].name == "row 2"


def test_parquet_of_the_hub_has_splits_and_classes(tmp_path, rgb, processor, cells):
    (tmp_path / "src" / "data").mkdir(parents=True)
    made = with_names(cells)
    made.select([0, 1]).to_parquet(tmp_path / "src/data/train-00000-of-00002.parquet")
    made.select([2, 3]).to_parquet(tmp_path / "src/data/train-00001-of-00002.parquet")
    made.select([4, 5]).to_parquet(tmp_path / "src/data/val-00000-of-00001.parquet")
    assert list_splits(tmp_path / "src") == ["train", "validation"]
    train = open_images(tmp_path / "src", split="train")
    check(train, processor, rgb[:4], [3, 1, 2, 0])
    assert (train.classes, train.split) == (["a", "b", "c", "d"], "train")
    check(open_images(tmp_path / "src", split="val"), processor, rgb[4:6], [1, 1])


def test_parquet_without_splits_is_read_in_the_order_of_the_names(tmp_path, rgb, processor, cells):
    for name, rows in (("b", cells[3:]), ("a", cells[:3])):
        parquet.write_table(table(rows), tmp_path / f"{name}.parquet")
    check(open_images(tmp_path), processor, rgb[:6], [3, 1, 2, 3, 1, 2])


def test_save_to_disk(tmp_path, rgb, processor, cells):
    with_names(cells).save_to_disk(tmp_path / "one", num_shards=2)
    source = open_images(tmp_path / "one")
    check(source, processor, rgb[:6])
    assert source.classes == ["a", "b", "c", "d"]
    both = DatasetDict({"test": with_names(cells[:6]), "train": with_names(cells).select([5, 0])})
    both.save_to_disk(tmp_path / "two")
    assert list_splits(tmp_path / "two") == ["train", "test"]
    check(open_images(tmp_path / "two", split="train"), processor, rgb[[5, 0]], [1, 3])


def test_pictures_that_lie_beside_the_table(tmp_path, rgb, processor, save):
    save(pictures={"a.png": rgb[0]})
    path = str(tmp_path / "pictures/a.png")
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    cells = pyarrow.array([{"bytes": None, "path": path}], kind)
    parquet.write_table(pyarrow.table({"image": cells}), tmp_path / "a.parquet")
    source = open_images(tmp_path / "a.parquet")
    assert (source[0].image, source[0].label) == (Path(path), None)
    check(source, processor, rgb[:1], [None])


def test_broken_rows_are_the_callers_to_count(tmp_path, cells):
    cells[1] = {"bytes": b"text", "path": "x.png"}
    cells[2] = {"bytes": None, "path": None}
    parquet.write_table(table(cells, [0, 1, 2, None, -1, 5]), tmp_path / "a.parquet")
    source = open_images(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"^row 1 \(x\.png\) is not an image that Pillow can read"):
        source[1]
    with pytest.raises(ValueError, match=r"^row 2 is empty: there is no image in it"):
        source[2]
    assert [source[index].label for index in (0, 3, 4, 5)] == [0, None, None, 5]


def test_progress_bars_of_the_library_come_back(tmp_path, cells):
    from datasets.utils import are_progress_bars_disabled

    parquet.write_table(table(cells), tmp_path / "a.parquet")
    before = are_progress_bars_disabled(), datasets.logging.get_verbosity()
    open_images(tmp_path / "a.parquet")
    assert (are_progress_bars_disabled(), datasets.logging.get_verbosity()) == before


def write_parquet(**columns):
    return lambda place: parquet.write_table(pyarrow.table(columns), place / "a.parquet")


def saved_and(spoil):
    def prepare(place):
        Dataset.from_dict({"image": [b"1", b"2"]}).save_to_disk(place / "src")
        spoil(place / "src")

    return prepare


def mixed(place):
    (place / "src").mkdir()
    for name in ("train.parquet", "more.parquet"):
        parquet.write_table(pyarrow.table({"image": [b"1"]}), place / "src" / name)


BAD = {
    "no parquet": (
        lambda p: (p / "a.parquet").write_bytes(b"PAR1 not"), "a.parquet", "a.parquet cannot be read as parquet ("
    ),
    "no images": (write_parquet(text=["a"]), "a.parquet", "a.parquet has no column of images, only text: images are"),
    "which images": (
        write_parquet(left=[b"1"], right=[b"2"]), "a.parquet", "a.parquet has several columns of images (left, right):"
    ),
    "labels in words": (
        write_parquet(image=[b"1"], label=["cat"]), "a.parquet", "the column label of a.parquet holds string: labels"
    ),
    "no rows": (
        lambda p: Dataset.from_dict({"image": []}, Features({"image": Value("binary")})).save_to_disk(p / "src"),
        "src", "src has no rows: give a source with images",
    ),
    "half of it in splits": (mixed, "src", "src/more.parquet belongs to no split and other files in src do: rename it"),
    "no state": (
        saved_and(lambda p: (p / "state.json").write_text("{}")), "src", "src/state.json is damaged (_data_files"
    ),
    "a shard cut short": (
        saved_and(lambda p: (p / "data-00000-of-00001.arrow").write_bytes(b"\xff\xff\xff\xff\x10")),
        "src", "src/data-00000-of-00001.arrow is no readable Arrow file (",
    ),
    "a shard gone": (
        saved_and(lambda p: (p / "data-00000-of-00001.arrow").unlink()),
        "src", "src/data-00000-of-00001.arrow is no readable Arrow file (",
    ),
    "no splits listed": (
        saved_and(lambda p: (p / "dataset_dict.json").write_text('{"splits": []}')),
        "src", "src/dataset_dict.json is damaged (it lists no splits): save the data set again",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("prepare", "src", "message"), BAD.values(), ids=BAD)
def test_a_bad_table_is_one_sentence(tmp_path, monkeypatch, prepare, src, message):
    monkeypatch.chdir(tmp_path)
    prepare(Path())
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        open_images(src)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_without_the_library_one_sentence(tmp_path, monkeypatch, cells):
    import sys

    parquet.write_table(table(cells), tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"^parquet needs the library datasets: pip install 'imagegpt\[data\]'$"):
        open_images(tmp_path / "a.parquet")


@pytest.mark.parametrize("folder", ["a[1]", "a*b", "a?"])
def test_parquet_in_a_folder_whose_name_looks_like_a_pattern(tmp_path, rgb, processor, cells, folder):
    (tmp_path / folder).mkdir()
    parquet.write_table(table(cells), tmp_path / folder / "a.parquet")
    check(open_images(tmp_path / folder / "a.parquet"), processor, rgb[:6])
