"""Damaged encodings: whatever byte changes, nobody gets other images; the files are named, and made again."""

import hashlib
import json
import random
import shutil

import numpy as np
import pyarrow
import pytest

from imagegpt.data.encoded import EncodedDataset
from imagegpt.jobs.encode import encode

SHARD = "data-00001-of-00003.arrow"


@pytest.fixture(scope="module")
def source(tmp_path_factory, rgb):
    place = tmp_path_factory.mktemp("source") / "a.npz"
    np.savez(place, images=rgb, labels=np.arange(30) % 4)
    return place


@pytest.fixture(scope="module")
def encoded(source, processor):
    """Thirty images in shards of ten."""
    encode(source, source.parent / "out", processor, shard_size=10)
    return source.parent / "out"


@pytest.fixture
def copy(encoded, tmp_path):
    return shutil.copytree(encoded, tmp_path / "out")


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


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
    with pytest.raises(
        ValueError, match=rf"{SHARD} is damaged \(its SHA-256 is not the recorded one\).* which replaces what"
    ):
        EncodedDataset(copy)
    with pytest.warns(UserWarning, match=rf"{SHARD} is damaged .* and is made again"):
        report = encode(source, copy, processor, shard_size=10)
    assert report.splits[0].num_new == 10
    assert contents(copy) == contents(encoded)


def test_all_damaged_files_are_named(copy):
    (copy / SHARD).unlink()
    (copy / "data-00000-of-00003.arrow").write_bytes(b"x")
    with pytest.raises(ValueError, match=rf"data-00000-of-00003.arrow is damaged \(.*\), .*{SHARD} is missing: run"):
        EncodedDataset(copy)


def test_damage_in_an_unfinished_encoding_is_noticed(copy, source, encoded, processor):
    """The checksum of a shard is in its marker; a shard without a marker is not damaged but unfinished."""
    fields = json.loads((copy / "encoding.json").read_text())
    for name in ("num_images", "num_broken", "broken"):
        del fields[name]
    (copy / "encoding.json").write_text(json.dumps(fields | {"finished": False, "checksums": {}}))
    (copy / SHARD).write_bytes(flip((copy / SHARD).read_bytes(), -100))
    (copy / "data-00002-of-00003.arrow").write_bytes(b"half")
    (copy / ".imagegpt" / "00002.done").unlink()
    with pytest.warns(UserWarning, match=rf"{SHARD} is damaged") as caught:
        encode(source, copy, processor, shard_size=10)
    assert len(caught) == 1
    assert contents(copy) == contents(encoded)


@pytest.mark.parametrize("marker", [b"", b"{", b'{"num_images": 10, "broken": [], "checksum": "0"}', b"\xff"])
def test_a_damaged_marker_means_that_its_shard_is_made_again(copy, source, encoded, processor, marker):
    (copy / ".imagegpt" / "00001.done").write_bytes(marker)
    with pytest.warns(UserWarning, match=rf"{SHARD} is damaged .* and is made again"):
        assert encode(source, copy, processor, shard_size=10).splits[0].num_new == 10
    assert contents(copy) == contents(encoded)


def test_lost_markers_cost_time_only(copy, source, encoded, processor):
    shutil.rmtree(copy / ".imagegpt")
    assert encode(source, copy, processor, shard_size=10).splits[0].num_new == 30
    assert contents(copy) == contents(encoded)


def test_many_damaged_files_are_counted_rather_than_named(tmp_path, source, processor):
    encode(source, tmp_path / "out", processor, shard_size=3)
    for path in (tmp_path / "out").glob("data-*"):
        path.write_bytes(b"x")
    with pytest.warns(UserWarning, match="made again") as caught:
        encode(source, tmp_path / "out", processor, shard_size=3)
    assert len(caught) == 4
    assert str(caught[-1].message).startswith("7 more files in ")


def test_a_copy_for_another_process_is_not_read_again(encoded, monkeypatch):
    import pickle

    content = pickle.dumps(EncodedDataset(encoded))
    monkeypatch.setattr("imagegpt.data.encoding_folder.verify_shards", lambda *_: pytest.fail("it reads all"))
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
    "other images": (replaced("index", lambda _: pyarrow.array(range(10))), "its images are not those of its range"),
    "an object": (described(b"{}"), "its list of broken images: the content is {}: it must be a list, in brackets"),
    "a number": (
        described(b'[{"index": "x", "name": "a", "trouble": "huge", "message": ""}]'),
        "its list of broken images: 0.index is 'x': it must be a valid integer",
    ),
    "deep": (described(b"[" * 100_000), "its list of broken images is nested too deeply"),
    "not JSON": (described(b"\xff"), "its list of broken images is not JSON"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_contents_that_cannot_be_are_refused_whatever_the_checksum(copy, change, message):
    change(copy)
    set_checksum(copy)
    with pytest.raises(ValueError, match="is damaged") as caught:
        EncodedDataset(copy)
    assert str(caught.value).startswith(f"{copy / SHARD} is damaged ({message}")
    assert "\n" not in str(caught.value)


FIELDS = {
    "shard_size": (0, "shard_size is 0: it must be an integer from 1 to 1,048,576 (images)"),
    "num_source": (10**30, "num_source is 1000000000000000000000000000000: it must be an integer from 1 to"),
    "num_colors": ("x", "num_colors is 'x': it must be an integer from 2 to 65,536 (colours)"),
    "processor": ({"size": 8}, "processor.size.height is None: it must be an integer from 1 to 1,024 (pixels)"),
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
        EncodedDataset(copy)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"[]", b'{"kind": 3}'])
def test_a_manifest_that_is_none_is_one_sentence(copy, content):
    (copy / "encoding.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"encoding.json was not written by imagegpt or is damaged: encode the"):
        EncodedDataset(copy)
