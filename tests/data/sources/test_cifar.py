"""CIFAR's own files, made here as its authors made them, Python 2's pickles included."""

import io
import os
import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagegpt.data.sources.cifar import CIFAR10_CLASSES
from imagegpt.data.sources.registry import list_splits, open_images

SHEETS = Path(__file__).parents[4] / "shared" / "data" / "cifar10"


class Python2Pickler(pickle._Pickler):
    """Writes texts and bytes as Python 2 wrote its strings, which are neither."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012 - as it is there

    def save_string(self, text):
        content = text.encode("latin-1") if isinstance(text, str) else text
        self.write(b"T" + struct.pack("<i", len(content)) + content)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_string


def python2_pickle(content):
    file = io.BytesIO()
    Python2Pickler(file, 2).dump(content)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    return images, rng.integers(0, 10, 7)


def rows(images):
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), -1))


def write_binary(path, images, *labels):
    np.concatenate([*(column[:, None].astype(np.uint8) for column in labels), rows(images)], axis=1).tofile(path)


def write_pickle(path, images, labels, key="labels", dump=python2_pickle):
    path.write_bytes(dump({"data": rows(images), key: labels.tolist(), "batch_label": "one of them"}))


def check(source, images, labels):
    assert len(source) == len(images)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        example = source[index]
        assert np.array_equal(example.image, image)
        assert (example.label, example.image.dtype) == (label, np.uint8)


@pytest.mark.parametrize("kind", ["binary", "pickle"])
def test_cifar10_in_batches(tmp_path, data, kind):
    images, labels = data
    suffix, write = (".bin", write_binary) if kind == "binary" else ("", write_pickle)
    write(tmp_path / f"data_batch_2{suffix}", images[2:5], labels[2:5])
    write(tmp_path / f"data_batch_1{suffix}", images[:2], labels[:2])
    write(tmp_path / f"test_batch{suffix}", images[5:], labels[5:])
    assert list_splits(tmp_path) == ["train", "test"]
    train = open_images(tmp_path, split="train")
    check(train, images[:5], labels[:5])
    assert [train[index].name for index in (1, 2)] == [f"data_batch_1{suffix}[1]", f"data_batch_2{suffix}[0]"]
    assert train.classes == CIFAR10_CLASSES
    copy = pickle.loads(pickle.dumps(open_images(tmp_path, split="test")))
    check(copy, images[5:], labels[5:])
    check(open_images(tmp_path / f"data_batch_2{suffix}"), images[2:5], labels[2:5])


@pytest.mark.parametrize("kind", ["binary", "pickle"])
def test_cifar100_has_fine_labels(tmp_path, data, kind):
    images, _ = data
    fine = np.array([99, 0, 50, 10, 20, 30, 40])
    names = [f"class_{index}" for index in range(100)]
    if kind == "binary":
        write_binary(tmp_path / "train.bin", images, fine // 5, fine)
        (tmp_path / "fine_label_names.txt").write_text("\n".join(names) + "\n")
    else:
        write_pickle(tmp_path / "train", images, fine, key="fine_labels")
        (tmp_path / "meta").write_bytes(python2_pickle({"fine_label_names": names}))
    source = open_images(tmp_path, split="train")
    check(source, images, fine)
    assert source.classes == names


def test_names_of_cifar10_come_from_its_files(tmp_path, data):
    images, labels = data
    write_binary(tmp_path / "test_batch.bin", images, labels)
    (tmp_path / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    assert open_images(tmp_path, split="test").classes == list("abcdefghij")
    (tmp_path / "other.bin").write_bytes((tmp_path / "test_batch.bin").read_bytes())
    (tmp_path / "batches.meta.txt").unlink()
    assert open_images(tmp_path / "other.bin").classes is None  # so it might be something else


def test_a_pickle_of_python_3_is_read_too(tmp_path, data):
    for protocol in (2, 4):
        write_pickle(tmp_path / "test_batch", *data, dump=lambda content, p=protocol: pickle.dumps(content, p))
        check(open_images(tmp_path / "test_batch"), *data)


class Trap:
    """What an attacker would put into a pickle."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_runs_nothing(tmp_path, protocol):
    (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": Trap(tmp_path / "trapped")}, protocol))
    told = "uses the instruction DICT" if protocol == 0 else r"asks for \w+\.mkdir"
    with pytest.raises(ValueError, match=rf"is not a CIFAR pickle \(it {told}, which no data needs\)"):
        open_images(tmp_path / "test_batch")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bin", bytes(3072), r"a.bin has 3,072 bytes: images of CIFAR-10 have 3073 each, of CIFAR-100 3074"),
        ("a.bin", b"", r"a.bin has 0 bytes"),
        ("a.bin", bytes([10]) + bytes(3072), r"labels in .* run from 10 to 10, 10 classes are 0 to 9: the file"),
        ("train.bin", bytes([0, 100]) + bytes(3072), r"labels in .* run from 100 to 100, 100 classes are 0 to 99"),
        ("train", b"no pickle", r"train is not a CIFAR pickle \("),
        ("train", b"", r"train is not a CIFAR pickle \("),
        ("train", pickle.dumps([1]), r"train is not a CIFAR pickle \(it holds a list\)"),
        ("train", pickle.dumps({"data": [1]}), r"train has no data of uint8 \(images, 3072\)"),
        (
            "train",
            python2_pickle({"data": np.zeros((2, 3072), np.uint8)}),
            r"train does not have one label for each of its 2",
        ),
        (
            "train",
            python2_pickle({"data": np.zeros((2, 3072), np.uint8), "labels": [1, "2"]}),
            r"train does not have one label for each of its 2 images",
        ),
        (
            "train",
            python2_pickle({"data": np.zeros((1, 3072), np.uint8), "labels": [-1]}),
            r"labels in .* run from -1 to -1, 100 classes",
        ),
    ],
)
def test_damaged_files_are_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_images(tmp_path / name)
    assert "\n" not in str(caught.value)


def objects(shape, state):
    """An array whose elements the file calls objects, which are addresses, and whose content is what it likes."""
    start = b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb"
    return start + b"(K\x01K" + bytes([shape]) + b"\x85" + dtype + b"\x89" + state + b"tbs."


NESTED = b"\x80\x02N" + b"q\x00h\x00h\x00\x86" * 60  # a pair of twice the same pair of twice the same ...
FOREIGN = [
    (objects(2, b"U\x10" + b"A" * 16), "it calls something that no data needs, such as an array of anything but bytes"),
    (objects(2, b"]"), "it calls something that no data needs"),
    (python2_pickle({"data": np.array([1, "x"], object)}), "it calls something that no data needs"),
    (python2_pickle({"data": np.zeros((2, 3072), np.int64)}), "it calls something that no data needs"),
    (b"\x80\x02}r\xff\xff\xff\x7f.", "train has no data of uint8"),  # the C unpickler makes room for 2 ** 31 places
    (NESTED + b"q\x00}h\x00K\x01s.", "the instruction SETITEM makes no sense there"),  # whose hash takes for ever
    (b"\x80\x02cnumpy\ndtype\n}U\x08__call__K\x01sb.", "the instruction BUILD makes no sense there"),
    (b"\x80\x02e.", "the instruction APPENDS makes no sense there"),
    (b"\x80\x02\x82\x01.", "it uses the instruction EXT1, which no data needs"),
    (b"\x80\x02U\x01aQ.", "it uses the instruction BINPERSID, which no data needs"),
]


@pytest.mark.parametrize(("content", "message"), FOREIGN)
def test_a_pickle_builds_nothing_but_what_cifar_needs(tmp_path, content, message):
    """An array of objects whose addresses stood in the file ended the process."""
    (tmp_path / "train").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        open_images(tmp_path / "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [{}, {"fine_label_names": 3}, {"fine_label_names": [b"a", 3]}])
def test_class_names_that_are_none_are_one_sentence(tmp_path, data, names):
    write_pickle(tmp_path / "train", data[0], data[1], key="fine_labels")
    (tmp_path / "meta").write_bytes(pickle.dumps(names, 2))
    with pytest.raises(ValueError, match=r"meta has no list fine_label_names of class names: get the file again"):
        open_images(tmp_path, split="train")


@pytest.mark.skipif(not SHEETS.is_dir(), reason=f"the CIFAR-10 sheets are not at {SHEETS}")
def test_real_images_survive_the_binary_format(tmp_path):
    sheet = np.asarray(Image.open(SHEETS / "test_00.webp").convert("RGB")).reshape(25, 32, 40, 32, 3)
    images = sheet.transpose(0, 2, 1, 3, 4).reshape(1000, 32, 32, 3)
    labels = np.load(SHEETS / "labels.npy")[50_000:51_000]
    write_binary(tmp_path / "test_batch.bin", images, labels)
    source = open_images(tmp_path, split="test")
    check(source, images, labels)
    assert [source.classes[source[index].label] for index in range(3)] == ["cat", "ship", "ship"]
