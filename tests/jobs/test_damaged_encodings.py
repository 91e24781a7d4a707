"""Damaged encodings: whatever byte changes, nobody gets other images; the files are named, and made again."""

import hashlib
import json
import random
import shutil

import numpy as np
import pyarrow
import pytest

from imagegpt.data.encoded import EncodedImages
from imagegpt.jobs.encode import encode_images

SHARD = "data-00001-of-00003.arrow"


@pytest.fixture(scope="module")
def source(tmp_path_factory, rgb):
    place = tmp_path_factory.mktemp("source") / "a.npz"
    np.savez(place, images=rgb, labels=np.arange(30) % 4)
    return place


@pytest.fixture(scope="module")
def encoded(source, processor):
    """Thirty images in shards of ten."""
    encode_images(source, source.parent / "out", processor, shard_size=10)
    return source.parent / "out"


@pytest.fixture
def copy(encoded, tmp_path):
    return shutil.copytree(encoded, tmp_path / "out")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flip(content, at):
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


def set_checksum(folder, checksum=None):
    """Make the manifest agree with what the shard is now, as somebody would who wrote both."""
    path = folder / "encoding.json"
    fields = json.loads(path.read_text())
    fields["checksums"][SHARD] = checksum or hashlib.sha256((folder / SHARD).read_bytes()).hexdigest()
    path.write_text(json.dumps(fields))


@pytest.mark.parametrize("seed", range(20))
def test_a_changed_byte_is_never_other_images(copy, source, encoded, processor, seed):
    path = copy / SHARD
    content = path.read_bytes()
    path.write_bytes(flip(content, random.Random(seed).randrange(len(content))))
    with pytest.raises(ValueError, match=rf"{SHARD} is damaged \(its SHA-256 is not the one .* which makes again"):
        EncodedImages.load(copy)
    with pytest.warns(UserWarning, match=rf"{SHARD} is damaged .* and is made again"):
        report = encode_images(source, copy, processor, shard_size=10)
    assert report.parts[0].num_new == 10
    assert contents(copy) == contents(encoded)


def test_all_damaged_files_are_named(copy):
    (copy / SHARD).unlink()
    (copy / "data-00000-of-00003.arrow").write_bytes(b"x")
    with pytest.raises(ValueError, match=rf"data-00000-of-00003.arrow is damaged \(.*\), .*{SHARD} is missing: give"):
        EncodedImages.load(copy)


def test_damage_while_the_encoding_was_stopped_is_noticed(copy, source, encoded, processor):
    """The checksums are there from the first shard on."""
    fields = json.loads((copy / "encoding.json").read_text())
    fields["finished"] = False
    for name in ("num_images", "num_broken", "broken"):
        del fields[name]
    (copy / "encoding.json").write_text(json.dumps(fields))
    (copy / SHARD).write_bytes(flip((copy / SHARD).read_bytes(), -100))
    (copy / "data-00002-of-00003.arrow").unlink()
    with pytest.warns(UserWarning, match=rf"{SHARD} is damaged") as told:
        encode_images(source, copy, processor, shard_size=10)
    assert len(told) == 1, "what was not made yet is not damaged"
    assert contents(copy) == contents(encoded)


def test_a_copy_for_another_process_is_not_read_again(encoded, monkeypatch):
    import pickle

    content = pickle.dumps(EncodedImages.load(encoded))
    monkeypatch.setattr("imagegpt.data.encoding_folder.examine_shards", lambda *_: pytest.fail("it reads all"))
    assert len(pickle.loads(content)) == 30


def rewritten(change):
    """The shard after a change of its columns or its description."""

    def rewrite(folder):
        with pyarrow.ipc.open_stream((folder / SHARD).read_bytes()) as stream:
            batch, described = stream.read_next_batch(), dict(stream.schema.metadata)
        columns = {field.name: batch.column(field.name) for field in batch.schema}
        change(columns, described)
        batch = pyarrow.record_batch(columns).replace_schema_metadata(described)
        with pyarrow.OSFile(str(folder / SHARD), "wb") as file, pyarrow.ipc.new_stream(file, batch.schema) as stream:
            stream.write_batch(batch)

    return rewrite


def replaced(name, make):
    return rewritten(lambda columns, _: columns.update({name: make(columns[name])}))


def described(told):
    return rewritten(lambda _, about: about.update({b"imagegpt": told}))


def with_ids(change):
    def make(column):
        ids = column.values.to_numpy().copy()
        change(ids)
        return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(ids), 64)

    return make


IMPOSSIBLE = {
    "ids beyond the palette": (
        replaced("ids", with_ids(lambda ids: ids.__setitem__(5, 64))), "it has ids beyond the 64 colours of the palette"
    ),
    "no ids": (
        replaced("ids", lambda _: pyarrow.array([None] * 10, pyarrow.list_(pyarrow.uint16(), 64))), "it has empty cells"
    ),
    "lists of any length": (replaced("ids", lambda _: pyarrow.array([[1]] * 10)), "its columns are not those of"),
    "no label": (replaced("label", lambda _: pyarrow.array([None] * 10, pyarrow.int64())), "it has empty cells"),
    "a label below": (replaced("label", lambda _: pyarrow.array([-2] * 10)), "it has labels that are no class"),
    "other images": (replaced("index", lambda _: pyarrow.array(range(10))), "its images are not those of its stretch"),
    "an object": (described(b"{}"), "its list of broken pictures: the content is {}: it must be a list, in brackets"),
    "a number": (
        described(b'[{"index": "x", "name": "a", "trouble": "huge", "message": ""}]'),
        "its list of broken pictures: 0.index is 'x': it must be a valid integer",
    ),
    "deep": (described(b"[" * 100_000), "its list of broken pictures is nested too deeply"),
    "not JSON": (described(b"\xff"), "its list of broken pictures is not JSON"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_contents_that_cannot_be_are_refused_whatever_the_checksum(copy, change, message):
    change(copy)
    set_checksum(copy)
    with pytest.raises(ValueError, match="is damaged") as caught:
        EncodedImages.load(copy)
    assert str(caught.value).startswith(f"{copy / SHARD} is damaged ({message}")
    assert "\n" not in str(caught.value)


FIELDS = {
    "shard_size": (0, "shard_size is 0: it must be a whole number from 1 to 1,048,576 (images)"),
    "num_source": (10**30, "num_source is 1000000000000000000000000000000: it must be a whole number from 1 to"),
    "num_colors": ("x", "num_colors is 'x': it must be a whole number from 2 to 65,536 (colours)"),
    "processor": ({"size": 8}, "processor.size.height is None: it must be a whole number from 1 to 1,024 (pixels)"),
    "classes": ("abcd", "classes is 'abcd': it must be a list, in brackets"),
    "checksums": (None, "checksums is None: it must be an object, in braces"),
    "finished": ([], "finished is []: it must be true or false"),
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_that_cannot_be_is_named(copy, field):
    value, message = FIELDS[field]
    fields = json.loads((copy / "encoding.json").read_text())
    (copy / "encoding.json").write_text(json.dumps({**fields, field: value}))
    with pytest.raises(ValueError, match=r"encoding\.json is damaged") as caught:
        EncodedImages.load(copy)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"[]", b'{"kind": 3}'])
def test_a_manifest_that_is_none_is_one_sentence(copy, content):
    (copy / "encoding.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"encoding.json was not written by imagegpt or is damaged: encode the"):
        EncodedImages.load(copy)
