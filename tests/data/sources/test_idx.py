"""MNIST's files are a source like the others, compressed or not, and damaged ones are a sentence."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from imagegpt.data.hashing import source_fingerprint
from imagegpt.data.sources.registry import list_splits, open_images

DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "fashion-mnist"
IMAGES = np.random.default_rng(0).integers(0, 256, (9, 5, 4), np.uint8)
LABELS = np.arange(9, dtype=np.uint8) % 3


def content(values, kind=8):
    return struct.pack(f">HBB{values.ndim}I", 0, kind, values.ndim, *values.shape) + values.tobytes()


def write(folder, prefix, images, labels=None, suffix="", between="-"):
    for values, what in ((images, "images"), (labels, "labels")):
        if values is not None:
            path = folder / f"{prefix}{what}{between}idx{values.ndim}-ubyte{suffix}"
            path.write_bytes(gzip.compress(content(values)) if suffix else content(values))


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("between", ["-", "."])
def test_mnists_files(tmp_path, processor, suffix, between):
    write(tmp_path, "train-", IMAGES, LABELS, suffix, between)
    write(tmp_path, "t10k-", IMAGES[:4], LABELS[:4], suffix, between)
    assert list_splits(tmp_path) == ["train", "test"]
    for split, num in (("train", 9), ("test", 4)):
        source = open_images(tmp_path, split=split)
        examples = [source[index] for index in range(num)]
        assert (len(source), source.split, source.classes) == (num, split, ["0", "1", "2"])
        assert [example.label for example in examples] == source.labels.tolist() == LABELS[:num].tolist()
        ids = processor([example.image for example in examples])["input_ids"]
        assert np.array_equal(ids, processor(list(IMAGES[:num]))["input_ids"])
        copy = pickle.loads(pickle.dumps(source))
        assert source_fingerprint(copy) == source_fingerprint(source)
    single = open_images(tmp_path / f"train-images{between}idx3-ubyte{suffix}")
    assert (len(single), single.split, single[3].name) == (9, None, f"{single.path.name}[3]")
    assert isinstance(single._images, np.memmap) == (not suffix)


def test_images_without_labels_and_files_packed_and_unpacked(tmp_path):
    write(tmp_path, "emnist-letters-train-", IMAGES)
    source = open_images(tmp_path, split="train")
    assert (source.classes, source.labels.tolist(), source[0].label) == (None, [-1] * 9, None)
    write(tmp_path, "emnist-letters-train-", IMAGES, LABELS, ".gz")
    assert open_images(tmp_path, split="train").classes == ["0", "1", "2"]


def test_what_changes_the_labels_changes_the_fingerprint(tmp_path):
    write(tmp_path, "train-", IMAGES, LABELS)
    before = source_fingerprint(open_images(tmp_path, split="train"))
    write(tmp_path, "train-", IMAGES, LABELS[::-1].copy())
    assert source_fingerprint(open_images(tmp_path, split="train")) != before


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the data set of {DATA} is not here")
def test_fashion_mnist():
    source = open_images(DATA, split="test")
    assert (len(source), source[0].image.shape, source.classes) == (10_000, (28, 28), list("0123456789"))
    assert np.bincount(source.labels).tolist() == [1000] * 10


whole = content(IMAGES)
BAD = {
    "cut": (whole[:-1], "its 195 bytes cannot be the 180 values that it declares"),
    "too long": (whole + b"x", "its 197 bytes cannot be the 180 values that it declares"),
    "cut within its header": (whole[:9], "unpack requires a buffer of 16 bytes"),
    "empty": (b"", "unpack requires a buffer"),
    "other numbers": (content(IMAGES, kind=9), "it does not hold bytes with 3 axes"),
    "other axes": (content(IMAGES[0]) + bytes(9), "it does not hold bytes with 3 axes"),
    "more than there can be": (struct.pack(">HBB3I", 0, 8, 3, 1 << 31, 1 << 31, 1 << 31), "16 bytes cannot be the 9,"),
    "no gzip": (whole, "Not a gzipped file"),
    "cut gzip": (gzip.compress(whole)[:-20], "Compressed file ended before"),
    "gzip of a damaged file": (gzip.compress(whole[:-1]), "it holds fewer values than it declares"),
    "gzip of a longer file": (gzip.compress(whole + bytes(99)), "it holds more values than it declares"),
    "gzip of a bomb": (
        gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 1 << 31, 28, 28) + bytes(9)), "cannot be the 1,683,627,180,032 v"
    ),
    "a broken stream": (gzip.compress(whole)[:12] + bytes(99), "is no readable IDX file"),
}  # fmt: skip


@pytest.mark.parametrize(("damaged", "message"), BAD.values(), ids=BAD)
def test_a_damaged_file_is_one_sentence(tmp_path, request, damaged, message):
    packed = "gzip" in request.node.name or "stream" in request.node.name
    path = tmp_path / f"train-images-idx3-ubyte{'.gz' * packed}"
    path.write_bytes(damaged)
    with pytest.raises(
        ValueError, match=r"train-images-idx3-ubyte\S* is no readable IDX file \(.*\): get the"
    ) as caught:
        open_images(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_do_not_go_together(tmp_path):
    write(tmp_path, "train-", IMAGES, LABELS[:-1])
    with pytest.raises(ValueError, match=r"labels-idx1-ubyte has 8 labels and .*images-idx3-ubyte 9 images: get both"):
        open_images(tmp_path, split="train")
    write(tmp_path, "train-", IMAGES[:0])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte holds 0 x 5 x 4 pixels: there must be at least one"):
        open_images(tmp_path, split="train")
    write(tmp_path, "emnist-train-", IMAGES)
    with pytest.raises(
        ValueError, match=r"has emnist-train-images-idx3-ubyte and train-images-idx3-ubyte for the same"
    ):
        open_images(tmp_path, split="train")
    for name in ("emnist-train", "train"):
        (tmp_path / f"{name}-images-idx3-ubyte").unlink()
    write(tmp_path, "", IMAGES)
    with pytest.raises(
        ValueError, match=r"images-idx3-ubyte is of no split: name it as MNIST names its files, such as train"
    ):
        open_images(tmp_path)
