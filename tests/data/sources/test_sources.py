"""Every kind of source gives the same pictures and labels for the same data, and every bad one a sentence."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagegpt.data.broken_images import trouble_with
from imagegpt.data.hashing import source_fingerprint
from imagegpt.data.sources.digits import load_digits
from imagegpt.data.sources.registry import list_splits, open_images, source_processor
from imagegpt.images.decoding import open_image


def read(source, processor):
    """The ids, labels and names of all of a source."""
    examples = [source[index] for index in range(len(source))]
    ids = processor([example.image for example in examples])["input_ids"]
    return ids, [example.label for example in examples], [example.name for example in examples]


def colors(*levels):
    """Images of one colour each, by their red."""
    return {f"{level}.png": np.full((4, 4, 3), (level, 0, 0), np.uint8) for level in levels}


def reds(source):
    return [int(np.asarray(Image.open(source[index].image))[0, 0, 0]) for index in range(len(source))]


def test_a_plain_folder_is_in_the_order_of_its_names(tmp_path, save):
    save(**{"all": colors(3, 1, 2), "all/inner": colors(9), "all/.hidden": colors(7)})
    (tmp_path / "all" / "notes.txt").write_text("no image")
    (tmp_path / "all" / ".4.png").write_bytes(b"hidden")
    (tmp_path / "all" / "5.pdf").write_bytes(b"Pillow writes it only")
    source = open_images(tmp_path / "all")
    assert reds(source) == [1, 2, 3, 9]
    assert [source[index].label for index in range(4)] == [None] * 4
    assert (source.classes, source.split, source[3].name) == (None, None, "inner/9.png")
    assert source.name == str(tmp_path / "all")


def test_subfolders_are_classes_in_their_order(tmp_path, save):
    """As text "a-b/x" comes before "a/x"; as a folder it comes after."""
    save(**{"all/a-b": colors(1), "all/a": colors(2), "all/c/deep": colors(4), "all/c": colors(3)})
    (tmp_path / "all" / ".empty").mkdir()
    source = open_images(tmp_path / "all")
    assert source.classes == ["a", "a-b", "c"]
    assert [(red, source[index].label) for index, red in enumerate(reds(source))] == [(2, 0), (1, 1), (3, 2), (4, 2)]


def test_splits_share_their_classes(tmp_path, save):
    save(
        **{"all/train/cat": colors(1), "all/train/dog": colors(2), "all/train/emu": colors(6)},
        **{"all/val/dog": colors(3), "all/val/emu": colors(4), "all/test": colors(5)},
    )
    assert list_splits(tmp_path / "all") == ["train", "validation", "test"]
    for said in ("val", "valid", "validation", "Val"):
        source = open_images(tmp_path / "all", split=said)
        assert (source.split, source.classes, reds(source)) == ("validation", ["cat", "dog", "emu"], [3, 4])
        assert [source[0].label, source[1].label] == [1, 2]
    test = open_images(str(tmp_path / "all"), split="test")
    assert (test.classes, test[0].label, test[0].name) == (["cat", "dog", "emu"], None, "5.png")


def test_links_are_followed_but_not_in_circles(tmp_path, save):
    save(**{"all/a": colors(1), "elsewhere": colors(2)})
    (tmp_path / "all" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "all" / "a" / "loop").symlink_to(tmp_path / "all")
    source = open_images(tmp_path / "all")
    assert reds(source) == [1, 2]
    assert source.classes == ["a", "b"]


@pytest.mark.parametrize("kind", ["npy", "npz", "compressed", "x and y", "fortran"])
def test_arrays(tmp_path, rgb, processor, kind):
    labels = np.arange(30, dtype=np.uint8) % 4
    path = tmp_path / ("a.npy" if kind == "npy" else "a.npz")
    if kind == "npy":
        np.save(path, rgb)
    elif kind == "npz":
        np.savez(path, other=np.arange(3), labels=labels, images=rgb)
    elif kind == "compressed":
        np.savez_compressed(path, images=rgb, labels=labels)
    elif kind == "x and y":
        np.savez(path, x=rgb, y=labels)
    else:
        np.savez(path, data=np.asfortranarray(rgb), labels=labels)
    source = open_images(path)
    ids, found, names = read(source, processor)
    assert np.array_equal(ids, processor(rgb)["input_ids"])
    assert found == ([None] * 30 if kind == "npy" else labels.tolist())
    assert names[7] == f"{path.name}[7]"
    assert isinstance(source.images, np.memmap) == (kind != "compressed")  # nothing is read that can be mapped


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_channels_of_arrays(tmp_path, processor, channels):
    shape = (3, 8, 8) if channels is None else (3, 8, 8, channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "a.npy", images)
    assert np.array_equal(read(open_images(tmp_path / "a.npy"), processor)[0], processor(list(images))["input_ids"])


def test_a_label_of_minus_one_is_none(tmp_path, rgb):
    np.savez(tmp_path / "a.npz", images=rgb[:3], labels=[1, -1, 0])
    source = open_images(tmp_path / "a.npz")
    assert [source[index].label for index in range(3)] == [1, None, 0]


def test_a_folder_of_arrays_has_splits(tmp_path, rgb, processor):
    np.savez(tmp_path / "test.npz", images=rgb[:3])
    np.save(tmp_path / "train.npy", rgb[3:])
    np.save(tmp_path / "mean.npy", rgb)
    assert list_splits(tmp_path) == ["train", "test"]
    ids = read(open_images(tmp_path, split="train"), processor)[0]
    assert np.array_equal(ids, processor(rgb[3:])["input_ids"])


def test_digits_are_the_ids_of_their_data_set():
    digits = load_digits()["test"]
    assert list_splits("digits") == ["train", "validation", "test"]
    source = open_images("digits", split="test")
    ids, labels, _ = read(source, source_processor("digits"))
    assert np.array_equal(ids, digits.levels)
    assert labels == digits.labels.tolist()
    assert source.classes == list("0123456789")
    assert len(pickle.dumps(source)) < 1000


def test_a_copy_opens_its_files_itself(tmp_path, rgb, save):
    np.savez(tmp_path / "a.npz", images=rgb, labels=np.arange(30))
    save(**{"all/train/cat": colors(1, 2), "all/test/cat": colors(3)})
    for source in (open_images(tmp_path / "a.npz"), open_images(tmp_path / "all", split="test")):
        content = pickle.dumps(source)
        assert len(content) < 1000
        copy = pickle.loads(content)
        assert (len(copy), copy.classes, copy.split) == (len(source), source.classes, source.split)
        assert source_fingerprint(copy) == source_fingerprint(source)
        assert copy[0].label == source[0].label


def test_the_fingerprint_tells_sources_apart(tmp_path, save):
    save(**{"all/cat": colors(1, 2)})
    first = source_fingerprint(open_images(tmp_path / "all"))
    (tmp_path / "all/cat/2.png").rename(tmp_path / "all/cat/3.png")
    assert source_fingerprint(open_images(tmp_path / "all")) == first  # the same pictures in the same order
    (tmp_path / "all/cat/3.png").rename(tmp_path / "all/cat/0.png")
    moved = source_fingerprint(open_images(tmp_path / "all"))
    (tmp_path / "all/cat").rename(tmp_path / "all/dog")
    assert len({first, moved, source_fingerprint(open_images(tmp_path / "all"))}) == 3


def test_there_is_no_image_beyond_the_last(tmp_path, rgb):
    np.save(tmp_path / "a.npy", rgb)
    source = open_images(tmp_path / "a.npy")
    for index in (30, -1):
        with pytest.raises(IndexError, match=rf"there is no image {index} in .*a.npy: it has 30, numbered from 0"):
            source[index]
    assert len(list(source)) == 30  # the protocol of old: from 0 to the IndexError


def test_what_is_wrong_with_a_picture(tmp_path, processor, png):
    whole = png(np.zeros((4, 4, 3), np.uint8))
    for content, trouble in ((b"text", "unreadable"), (whole[:20], "unreadable")):
        with pytest.raises(ValueError, match=r"^row 1 (is not an image|cannot be decoded)") as caught:
            open_image(io.BytesIO(content), "row 1").load()
        assert trouble_with(caught.value) == trouble
    with pytest.raises(FileNotFoundError) as missing:
        processor.to_rgb([tmp_path / "gone.png"])
    assert trouble_with(missing.value) == "missing"


@pytest.mark.parametrize("share", [0.4, 0.9], ids=["an error of Pillow's", "a warning of Pillow's"])
def test_a_decompression_bomb_is_huge(monkeypatch, png, share):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(share * 32 * 32))
    with pytest.raises(ValueError, match=r"^x has more pixels than Pillow's limit of \d+: shrink") as caught:
        open_image(io.BytesIO(png(np.zeros((32, 32, 3), np.uint8))), "x")
    assert trouble_with(caught.value) == "huge"


def write(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def both_kinds(place):
    for name in ("train", "test_batch.bin"):
        write(place / "src" / name)


def mixed_splits(place):
    for name in ("train/a.png", "cat/b.png"):
        write(place / "src" / name)


def twice_the_same(place):
    for name in ("val/a.png", "valid/b.png"):
        write(place / "src" / name)


def saved_array(place, name="src.npz", **arrays):
    if name.endswith(".npy"):
        np.save(place / name, arrays["images"])
    else:
        np.savez(place / name, **arrays)


IMAGES = np.zeros((4, 2, 2, 3), np.uint8)

BAD = {
    "nothing there": (None, "./src", None, "'./src' does not exist: check the path"),
    "a path from the root": (None, "/nowhere/at/all", None, "'/nowhere/at/all' does not exist: check the path"),
    "an empty name": (None, "", None, "'' does not exist: check the path"),
    "a missing file": (None, "src/a.npz", None, "'src/a.npz' does not exist"),
    "empty folder": (lambda p: (p / "src").mkdir(), "src", None, "src holds no images: give digits; "),
    "a single image": (lambda p: write(p / "src.png"), "src.png", None, "src.png is no file that holds many images: "),
    "no such split": (None, "digits", "dev", "digits has no split 'dev': choose one of train, validation, test"),
    "split not chosen": (None, "digits", None, "digits has the splits train, validation, test: choose one"),
    "no splits": (lambda p: write(p / "src/a.png"), "src", "train", "src has no splits and 'train' was asked for"),
    "no splits in a file": (
        lambda p: saved_array(p, images=IMAGES), "src.npz", "test", "src.npz has no splits and 'test' was asked for"
    ),
    "classes beside splits": (mixed_splits, "src", "train", "src has images in cat beside the split train: move one"),
    "a split twice": (twice_the_same, "src", "val", "src has the folders val and valid, which mean the same split"),
    "an empty split": (
        lambda p: (write(p / "src/train/a.png"), (p / "src/test").mkdir()), "src", "test", "src/test holds no images"
    ),
    "a class that only validation has": (
        lambda p: (write(p / "src/train/cat/a.png"), write(p / "src/val/dog/b.png")),
        "src", "train", "src has images of dog in val and none in train: a class needs images to train on, add some",
    ),
    "a mistyped folder of a folder": (
        lambda p: write(p / "src/train/a.png"), "src/traim", None, "'src/traim' does not exist: check the path, or give"
    ),
    "splits in classes": (
        lambda p: [write(p / "src" / one / "a.png") for one in ("cat/train", "cat/test", "dog/train", "dog/test")],
        "src", None, "src has the splits test and train in its folder cat: give one of its folders, or make folders",
    ),
    "pictures and their masks": (
        lambda p: (write(p / "src/Images/a.jpg"), write(p / "src/annotations/trimaps/a.png")),
        "src", None, "src has images in Images and annotations, which are not names of classes: give one of these",
    ),
    "parts of other names": (
        lambda p: (write(p / "src/images_background/a/a.png"), write(p / "src/images_evaluation/b/a.png")),
        "src", None, "src has images in images_background and images_evaluation, which are not names of classes",
    ),
    "more than train and test": (
        lambda p: [write(p / "src" / one / "a.png") for one in ("seg_train/a", "seg_test/a", "seg_pred")],
        "src", "train", "src has images in seg_pred beside the split seg_test, seg_train: move one of them away",
    ),
    "encoded already": (
        lambda p: write(p / "src/encoding.json"), "src", None, "src holds encoded images: give the source"
    ),
    "no zip": (lambda p: write(p / "src.npz"), "src.npz", None, "src.npz is no readable .npz file (File is not a zip"),
    "no npy": (lambda p: write(p / "src.npy", b"x" * 99), "src.npy", None, "src.npy is no readable .npy file ("),
    "cut npy": (
        lambda p: (saved_array(p, "src.npy", images=IMAGES), os.truncate(p / "src.npy", 150)),
        "src.npy", None, "src.npy is no readable .npy file (",
    ),
    "objects": (
        lambda p: saved_array(p, images=np.array([{}, {}])), "src.npz", None, "src.npz is no readable .npz file (it"
    ),
    "other keys": (lambda p: saved_array(p, a=IMAGES), "src.npz", None, "src.npz holds a: name the array of images"),
    "floats": (lambda p: saved_array(p, images=IMAGES / 2), "src.npz", None, "the images in src.npz are float64: they"),
    "channels first": (
        lambda p: saved_array(p, images=np.zeros((4, 3, 8, 8), np.uint8)),
        "src.npz", None, "the images in src.npz have shape (4, 3, 8, 8): it must be (images, height, width)",
    ),
    "one image": (
        lambda p: saved_array(p, "src.npy", images=IMAGES[0, :, :, 0]), "src.npy", None, "the images in src.npy have"
    ),
    "no image": (lambda p: saved_array(p, images=IMAGES[:0]), "src.npz", None, "the images in src.npz have shape (0,"),
    "too few labels": (
        lambda p: saved_array(p, images=IMAGES, labels=[1, 2]), "src.npz", None, "the labels in src.npz are int64 (2,):"
    ),
    "labels that are no numbers": (
        lambda p: saved_array(p, images=IMAGES, labels=[0.5] * 4), "src.npz", None, "the labels in src.npz are float64"
    ),
    "negative labels": (
        lambda p: saved_array(p, images=IMAGES, labels=[0, 1, -2, 0]), "src.npz", None, "a label in src.npz is -2: l"
    ),
    "arrays twice": (
        lambda p: (write(p / "src/val.npy"), write(p / "src/valid.npz")), "src", None, "src/val.npy and valid.npz are"
    ),
    "both kinds of CIFAR": (both_kinds, "src", "train", "src holds both binary and Python files of CIFAR: keep one"),
}  # fmt: skip


@pytest.mark.parametrize(("prepare", "src", "split", "message"), BAD.values(), ids=BAD)
def test_a_bad_source_is_one_sentence(tmp_path, monkeypatch, prepare, src, split, message):
    monkeypatch.chdir(tmp_path)
    if prepare is not None:
        prepare(Path())
    with pytest.raises((ValueError, OSError)) as caught:
        open_images(src, split=split)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
