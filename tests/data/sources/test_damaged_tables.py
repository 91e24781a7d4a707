"""Tables that somebody else wrote or damaged: their images, or one sentence; and never a crash, or another file."""

import json
import random

import numpy as np
import pyarrow
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from imagegpt.data.sources.registry import list_splits, open_images
from imagegpt.images.reading import read_image

SHARD = "data-00000-of-00001.arrow"
WHITE = (255, 255, 255)


@pytest.fixture
def saved(tmp_path, rgb, png):
    """Six images as `save_to_disk` writes them."""
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    cells = [{"bytes": png(image), "path": f"{index}.png"} for index, image in enumerate(rgb[:6])]
    Dataset.from_dict({"image": cells, "label": [0, 1] * 3}, features).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def read(folder):
    """All images; those that cannot be read are None."""
    source, images = open_images(folder), []
    for index in range(len(source)):
        try:
            images.append(np.asarray(read_image(source[index].image, WHITE)))
        except (ValueError, FileNotFoundError):
            images.append(None)
    assert len(source.labels) == len(source)
    assert list(source.files())
    return images


@pytest.mark.parametrize("seed", range(25))
def test_a_damaged_table_is_read_or_refused_in_a_sentence(saved, seed):
    """Those of other people have no checksums: one image may be another one, but nothing lies outside the file."""
    rng, path = random.Random(seed), saved / SHARD
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content) - 8)
    content[at : at + 8] = rng.choice([b"\xff" * 8, bytes(8), (1 << 40).to_bytes(8, "little"), rng.randbytes(8)])
    path.write_bytes(content)
    told = ""
    try:
        read(saved)
    except ValueError as error:
        told = str(error)
    assert told.startswith(str(saved) if told else "")
    assert "\n" not in told


def replaced(column, make):
    """A shard in which a column is another one, of six rows."""

    def change(folder):
        with pyarrow.ipc.open_stream((folder / SHARD).read_bytes()) as stream:
            table = stream.read_all()
        place = table.schema.get_field_index(column)
        table = table.set_column(place, column, make()).replace_schema_metadata(table.schema.metadata)
        with pyarrow.OSFile(str(folder / SHARD), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)

    return change


def state(**fields):
    def change(folder):
        content = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps({**content, **fields}))

    return change


def listed(filename):
    return state(_data_files=[{"filename": filename}])


BAD = {
    "a label beyond the classes": (replaced("label", lambda: pyarrow.array([0, 1, 2] * 2)), "saved has the label 2, "),
    "a label beyond all": (replaced("label", lambda: pyarrow.array([1 << 63] * 6, pyarrow.uint64())), "saved has the"),
    "numbers as paths": (
        replaced("image", lambda: pyarrow.array([{"bytes": b"x", "path": 3}] * 6)), "saved has no column of images"
    ),
    "deep state": (lambda folder: (folder / "state.json").write_text("[" * 100_000), "saved/state.json is damaged ("),
    "no files": (state(_data_files=[]), "saved has no rows: give a source with images"),
    "files of no name": (state(_data_files=[{"name": SHARD}]), "saved/state.json is damaged (_data_files: 0.file"),
    "files of another kind": (state(_data_files=3), "saved/state.json is damaged (_data_files: the content is 3: it"),
    "a file elsewhere": (listed(f"../saved/{SHARD}"), f"saved/state.json is damaged ('../saved/{SHARD}' is not the"),
    "an absolute file": (listed("/etc/passwd"), "saved/state.json is damaged ('/etc/passwd' is not the name of"),
    "a drive": (listed("C:\\x"), "saved/state.json is damaged ('C:\\\\x' is not the name of a file"),
    "a long name": (listed("x" * 5000), "saved/state.json is damaged ('xxxxx"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_a_table_that_cannot_be_is_one_sentence(saved, monkeypatch, change, message):
    change(saved)
    monkeypatch.chdir(saved.parent)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        open_images("saved")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("path", ["/dev/zero", "missing.png", "a\0b", "."])
def test_a_row_that_names_no_file_is_one_broken_image(saved, path):
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    cells = [{"bytes": None, "path": path}, None, {"bytes": None, "path": None}, *[{"bytes": b"x", "path": "y"}] * 3]
    replaced("image", lambda: pyarrow.array(cells, kind))(saved)
    assert read(saved) == [None] * 6


@pytest.mark.parametrize("described", [b"[" * 100_000, b"\xff", b"[]", b'{"info": {"features": {"label": 3}}}'])
def test_a_description_that_is_none_gives_no_classes(saved, described, rgb):
    with pyarrow.ipc.open_stream((saved / SHARD).read_bytes()) as stream:
        table = stream.read_all().replace_schema_metadata({b"huggingface": described})
    with pyarrow.OSFile(str(saved / SHARD), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    assert open_images(saved).classes is None
    assert np.array_equal(read(saved), rgb[:6])


@pytest.mark.parametrize("splits", [["../saved"], ["/etc"], [3], "train", [], None, {"a": 1}])
def test_splits_that_lead_elsewhere_are_one_sentence(saved, splits):
    (saved / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    with pytest.raises(ValueError, match=r"saved/dataset_dict\.json is damaged \(.*\): save the data set again"):
        list_splits(saved)


def test_postscript_is_no_image(tmp_path):
    """Pillow would start Ghostscript for it, whatever the file is called."""
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.format == "EPS"
    with pytest.raises(ValueError, match=r"a\.png is not an image that Pillow can read"):
        read_image(tmp_path / "a.png", WHITE)
