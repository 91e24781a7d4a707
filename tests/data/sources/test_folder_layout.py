"""The layouts of published data sets are told by their folders' names, and splits are never taken for classes."""

import time

import pytest
from PIL import Image

from imagegpt.data.sources.registry import list_splits, open_images
from imagegpt.data.splits import canonical


def make(root, *files):
    """Tiny image files."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (1, 1)).save(path, "PNG")
    return root


def found(root):
    """Each split, with its classes and the labels and names of its images."""
    described = {}
    for split in list_splits(root) or [None]:
        source = open_images(root, split=split)
        described[split] = [(example.name, example.label) for example in (source[i] for i in range(len(source)))]
    return source.classes, described


PAIRS = [
    ("train", "test", "test"),
    ("training", "testing", "test"),
    ("Training", "Test", "test"),
    ("train2017", "val2017", "validation"),
    ("train_images", "test_images", "test"),
    ("images-train", "images-val", "validation"),
    ("train_set", "validation_set", "validation"),
    ("trainset", "testset", "test"),
    ("train", "test1", "test"),
    ("cars_train", "cars_test", "test"),
    ("Final_Training", "Final_Test", "test"),
    ("asl_alphabet_train", "asl_alphabet_test", "test"),
]


@pytest.mark.parametrize(("first", "second", "meaning"), PAIRS)
@pytest.mark.parametrize("inside", ["{}", "data/{}", "archive/images/{}", "{}/{}", "{}/Images"])
def test_splits_by_their_usual_names(tmp_path, first, second, meaning, inside):
    """training/ and testing/ were two classes, and so were most of these."""
    names = [inside.format(one, one) for one in (first, second)]
    make(tmp_path, *(f"{name}/{label}/1.png" for name in names for label in ("cat", "dog")))
    images = [("cat/1.png", 0), ("dog/1.png", 1)]
    assert found(tmp_path) == (["cat", "dog"], {"train": images, meaning: images})


LAYOUTS = {
    "MNIST as PNG": (
        ("mnist_png/training/0/1.png", "mnist_png/training/1/2.png", "mnist_png/testing/0/3.png"),
        (["0", "1"], {"train": [("0/1.png", 0), ("1/2.png", 1)], "test": [("0/3.png", 0)]}),
    ),
    "Tiny ImageNet": (
        ("train/n01/images/a.jpeg", "train/n02/images/b.jpeg", "val/images/c.jpeg", "test/images/d.jpeg"),
        (
            ["n01", "n02"],
            {
                "train": [("n01/images/a.jpeg", 0), ("n02/images/b.jpeg", 1)],
                "validation": [("c.jpeg", None)],
                "test": [("d.jpeg", None)],
            },
        ),
    ),
    "Caltech 101": (
        ("caltech-101/101_ObjectCategories/accordion/1.jpg", "caltech-101/101_ObjectCategories/ant/1.jpg"),
        (["accordion", "ant"], {None: [("accordion/1.jpg", 0), ("ant/1.jpg", 1)]}),
    ),
    "Food-101": (
        ("food-101/images/apple_pie/1.jpg", "food-101/images/ramen/2.jpg"),
        (["apple_pie", "ramen"], {None: [("apple_pie/1.jpg", 0), ("ramen/2.jpg", 1)]}),
    ),
    "Oxford Flowers": (
        ("jpg/image_1.jpg", "jpg/image_2.jpg"), (None, {None: [("image_1.jpg", None), ("image_2.jpg", None)]})
    ),
    "COCO": (
        ("images/train2017/1.jpg", "images/val2017/2.jpg"),
        (None, {"train": [("1.jpg", None)], "validation": [("2.jpg", None)]}),
    ),
    "a single class": (("cat/1.png", "cat/more/2.png"), (["cat"], {None: [("cat/1.png", 0), ("cat/more/2.png", 0)]})),
    "one class in a folder of its own": (("cat/more/2.png",), (["cat"], {None: [("cat/more/2.png", 0)]})),
    "only one split": (("archive/train/cat/1.png",), (["cat"], {"train": [("cat/1.png", 0)]})),
    "classes called almost so": (
        ("bullet_train/1.png", "crash_test/1.png", "valley/1.png"),
        (
            ["bullet_train", "crash_test", "valley"],
            {None: [("bullet_train/1.png", 0), ("crash_test/1.png", 1), ("valley/1.png", 2)]},
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "wanted"), LAYOUTS.values(), ids=LAYOUTS)
def test_published_layouts(tmp_path, files, wanted):
    assert found(make(tmp_path, *files)) == wanted


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        *[("VAL", "validation"), ("test 2", "test"), ("train-00", "train"), ("train[:10%]", None), ("trainer", None)],
        *[("extra", None), ("", None), ("train_test", None), ("images", None), ("étrain", None)],
    ],
)
def test_meanings_of_names(name, meaning):
    assert canonical(name) == meaning


def test_only_the_names_of_folders_are_read_with_goodwill(tmp_path):
    make(tmp_path, "train/1.png", "test/1.png")
    with pytest.raises(ValueError, match=r"has no split 'test_images': choose one of train, test"):
        open_images(tmp_path, split="test_images")


@pytest.mark.parametrize("target", [".", "..", "a"])
def test_links_in_circles_end(tmp_path, target):
    """Two links to `.` made 2^40 folders."""
    root = make(tmp_path / "src", "a/1.png", "b/2.png")
    for folder in (root, root / "a", root / "b"):
        for name in ("l1", "l2", "l3"):
            (folder / name).symlink_to(target if (folder / target).exists() else ".")
    started = time.monotonic()
    names = [name for name, _ in found(root)[1][None]]
    assert {"a/1.png", "b/2.png"} <= set(names)
    assert len(names) < 50
    assert time.monotonic() - started < 5


def test_many_links_to_folders_of_links_end(tmp_path):
    """2^24 ways lead to the file at the end, within one class."""
    for level in range(24):
        (tmp_path / f"elsewhere/{level}").mkdir(parents=True)
        for name in "xy":
            (tmp_path / f"elsewhere/{level}/{name}").symlink_to(tmp_path / f"elsewhere/{level + 1}")
    make(tmp_path, "elsewhere/24/1.png", "src/b/2.png")
    (tmp_path / "src/a").symlink_to(tmp_path / "elsewhere/0")
    classes, images = found(tmp_path / "src")
    assert classes == ["a", "b"]
    assert [label for _, label in images[None]] == [0, 1]


def test_pictures_of_phones_are_not_passed_over(tmp_path):
    """Files that Pillow cannot read without another library were left out without a word."""
    make(tmp_path, "a.HEIC", "b.heif", "c.avif", "d.png")
    assert len(open_images(tmp_path)) == 4
