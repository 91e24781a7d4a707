import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from imagegpt import ColorPalette, ImageGPTImageProcessor
from imagegpt.data.loading import open_data, open_data_for_model
from imagegpt.data.recipe import DataRecipe
from imagegpt.data.sources.digits import load_digits
from imagegpt.jobs.encode import encode

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(30) % 4
PALETTE = ColorPalette.from_rgb(np.random.default_rng(5).integers(0, 256, (64, 3)))
PROCESSOR = ImageGPTImageProcessor(PALETTE, size=8)
IDS = PROCESSOR(PIXELS)["input_ids"]


def recipe(train, **fields):
    return DataRecipe(train=str(train), **fields)


def generators(num, seed=0):
    return [np.random.default_rng((seed, k)) for k in range(num)]


def everything(dataset):
    """All ids and labels, not augmented."""
    return dataset.read(range(len(dataset))), dataset.labels


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Encoded images with numbered labels, others without, one with splits; the pictures; a palette."""
    place = tmp_path_factory.mktemp("data")
    np.savez(place / "labelled.npz", images=PIXELS, labels=LABELS)
    np.save(place / "plain.npy", PIXELS)
    np.savez(place / "some.npz", images=PIXELS, labels=np.where(np.arange(30) == 7, -1, LABELS))
    (place / "splits").mkdir()
    for name, rows in (("train", slice(0, 20)), ("validation", slice(20, 25)), ("test", slice(25, 30))):
        np.savez(place / "splits" / f"{name}.npz", images=PIXELS[rows], labels=LABELS[rows])
    for index, pixels in enumerate(PIXELS):
        folder = place / "classes" / f"class{LABELS[index]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    encode(place / "labelled.npz", place / "encoded", PROCESSOR)
    encode(place / "plain.npy", place / "unlabelled", PROCESSOR)
    encode(place / "some.npz", place / "partly", PROCESSOR)
    encode(place / "splits", place / "encoded-splits", PROCESSOR)
    encode(place / "classes", place / "encoded-classes", PROCESSOR)
    other = ImageGPTImageProcessor(ColorPalette.grey(4), size=8)
    encode(place / "labelled.npz", place / "grey", other)
    PALETTE.save(place / "palette.npy")
    return place


def test_digits_are_those_that_ship():
    data, digits = open_data(recipe("digits")), load_digits()
    for name in ("train", "validation", "test"):
        ids, labels = everything(getattr(data, name))
        assert (ids == digits[name].levels).all()
        assert (labels == digits[name].labels).all()
    assert (data.num_pixels, data.palette, data.classes) == (64, ColorPalette.grey(17), list("0123456789"))


def test_encoded_images_are_held_out_by_the_seed_of_the_split(place):
    def splits(seed):
        data = open_data(recipe(place / "encoded", split={"validation": 0.2, "seed": seed}))
        return everything(data.train)[0], everything(data.validation)[0]

    train, validation = splits(0)
    assert len(train) + len(validation) == 30
    rows = {row.tobytes() for row in (*train, *validation)}
    assert rows == {row.tobytes() for row in IDS}
    assert (splits(0)[1] == validation).all()
    assert {row.tobytes() for row in splits(1)[1]} != {row.tobytes() for row in validation}


def test_the_same_images_are_held_out_whether_encoded_or_not(place):
    """A run on pictures and one on their ids validate with the same images."""
    split = {"validation": 0.2, "test": 0.2, "seed": 3}
    encoded = open_data(recipe(place / "encoded", split=split))
    pictures = open_data(recipe(place / "labelled.npz", split=split, palette=str(place / "palette.npy"), side=8))
    assert encoded.record.splits["test"].content.images == pictures.record.splits["test"].content.images
    assert (everything(encoded.train)[0] == everything(pictures.train)[0]).all()
    assert (everything(encoded.validation)[0] == everything(pictures.validation)[0]).all()


def test_at_least_one_image_is_held_out(place):
    data = open_data(recipe(place / "encoded", split={"validation": 1e-9}))
    assert (len(data.train), len(data.validation)) == (29, 1)


def test_labels_without_names_are_numbers(place):
    data = open_data(recipe(place / "encoded"))
    assert data.classes == ["0", "1", "2", "3"]
    ids, labels = everything(data.train)
    assert all(label == LABELS[(row == IDS).all(axis=1)][0] for row, label in zip(ids, labels, strict=True))


def test_labels_with_names_keep_them(place):
    assert open_data(recipe(place / "encoded-classes")).classes == ["class0", "class1", "class2", "class3"]
    pictures = recipe(place / "classes", palette=str(place / "palette.npy"), side=8)
    assert open_data(pictures).classes == ["class0", "class1", "class2", "class3"]


@pytest.mark.parametrize("name", ["unlabelled", "partly"])
def test_without_a_label_for_each_there_are_no_classes(place, name):
    data = open_data(recipe(place / name))
    assert data.classes is None
    assert everything(data.train)[1] is None


@pytest.mark.parametrize("encoded", [True, False])
def test_splits_are_found(place, encoded):
    fields = {} if encoded else {"palette": str(place / "palette.npy"), "side": 8}
    data = open_data(recipe(place / ("encoded-splits" if encoded else "splits"), **fields))
    for split, rows in ((data.train, slice(0, 20)), (data.validation, slice(20, 25)), (data.test, slice(25, 30))):
        assert (everything(split)[0] == IDS[rows]).all()


def test_splits_may_come_from_elsewhere(place):
    """An image that is in several splits counts in the last of train, validation and test."""
    data = open_data(
        recipe(place / "unlabelled", validation=str(place / "encoded-splits"), test=str(place / "encoded-splits"))
    )
    assert [len(split) for split in (data.train, data.validation, data.test)] == [20, 5, 5]
    assert list(data.notes) == [
        f"10 images of {place / 'unlabelled'} are in train and in validation or test: removed from train"
    ]
    assert (everything(data.train)[0] == IDS[:20]).all()


@pytest.mark.parametrize("augmentation", ["flip", "reflect-crop-flip"])
def test_ids_and_images_are_augmented_alike_and_for_training_only(place, augmentation):
    encoded = open_data(recipe(place / "encoded", augmentation=augmentation))
    pictures = open_data(
        recipe(place / "labelled.npz", augmentation=augmentation, palette=str(place / "palette.npy"), side=8)
    )
    for data in (encoded, pictures):
        rows = np.array([3, 3, 3, 3, 3, 3, 3, 3])
        ids = data.train.read(rows, generators(8))
        again = data.train.read(rows, generators(8))
        assert (ids == again).all()
        assert len({row.tobytes() for row in ids}) > 1
        still = data.validation.read(np.zeros(4, int), generators(4))
        assert len({row.tobytes() for row in still}) == 1
    moved = np.sort(encoded.train.read(np.arange(20), generators(20)), axis=1)
    if augmentation == "flip":
        assert (moved == np.sort(everything(encoded.train)[0][:20], axis=1)).all()


def test_random_crops_are_validated_by_the_middle(place):
    data = open_data(
        recipe(place / "plain.npy", augmentation="random-resized-crop", palette=str(place / "palette.npy"), side=8)
    )
    rows = np.array([2, 2])
    first, second = data.train.read(rows, generators(2))
    assert not (first == second).all()
    first, second = data.validation.read(np.array([0, 0]), generators(2))
    assert (first == second).all()


def test_data_can_be_sent_to_a_worker(place):
    for train in ("encoded", "unlabelled", "encoded-splits"):
        data = open_data(recipe(place / train, augmentation="flip"))
        copy = pickle.loads(pickle.dumps(data.train))
        assert (copy.read(np.arange(5), generators(5)) == data.train.read(np.arange(5), generators(5))).all()


@pytest.mark.parametrize(
    ("train", "fields", "message"),
    [
        ("digits", {"palette": "x.npy"}, "data.palette is 'x.npy', but digits has its own: leave it out"),
        ("digits", {"side": 16}, "data.side is 16, but digits has its own: leave it out"),
        (
            "digits",
            {"augmentation": "random-resized-crop"},
            "data.augmentation is 'random-resized-crop', which makes colours that the palette of data.train = digits",
        ),
        ("encoded", {"side": 16}, "data.side is 16, but .*encoded is encoded already: leave it out"),
        ("encoded", {"palette": "x.npy"}, r"data.palette is 'x.npy', but .*encoded is encoded already: leave it out"),
        ("encoded", {"augmentation": "random-resized-crop"}, "data.augmentation is 'random-resized-crop', and data.t"),
        (
            "encoded",
            {"validation": "grey"},
            "data.train and data.validation differ in palette or size: encode them alike",
        ),
        (
            "encoded-classes",
            {"test": "encoded"},
            "data.train and data.test differ in their classes: encode both from one",
        ),
        (
            "encoded",
            {"split": {"validation": 1 - 1e-9}},
            "data.split.validation is 0.999999999 of 30 images, which leaves none to train",
        ),
        ("plain.npy", {}, "data.palette is missing, and .*plain.npy is not encoded: give data.palette and data.side"),
        ("plain.npy", {"palette": "palette.npy"}, "data.side is missing, and .*plain.npy is not encoded"),
        ("plain.npy", {"palette": "no.npy", "side": 8}, "no.npy"),
        ("nothing", {}, "data.palette is missing, and .*nothing is not encoded"),
        ("nothing", {"palette": "palette.npy", "side": 8}, "'.*nothing' does not exist: check the path"),
        ("encoded", {"test": "nothing"}, "there is no folder .*nothing: encode images into it first"),
    ],
)
def test_what_does_not_fit_is_refused(place, train, fields, message):
    train = train if train == "digits" else place / train
    paths = {
        name: str(place / value) if name in ("palette", "validation", "test") and value != "x.npy" else value
        for name, value in fields.items()
    }
    with pytest.raises((ValueError, OSError), match=message) as caught:
        open_data(recipe(train, **paths))
    assert "\n" not in str(caught.value)


def test_half_encoded_images_are_refused(place, tmp_path):
    shutil.copytree(place / "encoded", tmp_path / "half")
    manifest = tmp_path / "half" / "encoding.json"
    manifest.write_text(manifest.read_text().replace('"finished": true', '"finished": false'))
    with pytest.raises(ValueError, match="did not finish: run the same imagegpt encode again"):
        open_data(recipe(tmp_path / "half"))


def test_images_to_try_a_model_on(place):
    def data_for(place, model, processor):
        return open_data_for_model(place, model, processor, None)

    assert len(data_for("digits", "m", ImageGPTImageProcessor(ColorPalette.grey(17), size=8)).test) == 360
    assert len(data_for(str(place / "splits"), "m", PROCESSOR).test) == 5
    with pytest.raises(ValueError, match=r"the model m makes images of 16 pixels, those of digits have 64"):
        data_for("digits", "m", ImageGPTImageProcessor(ColorPalette.grey(17), size=4))
    with pytest.raises(ValueError, match=r"the model m has another palette than .*grey"):
        data_for(str(place / "grey"), "m", PROCESSOR)
