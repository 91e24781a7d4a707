"""Data sets of token ids: what `TokenDataset` promises holds for images, for their encodings and for subsets."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from imagegpt import ImageGPTImageProcessor
from imagegpt.data.augmentation import find_augmentation, random_resized_crop
from imagegpt.data.datasets import ImageDataset, Subset
from imagegpt.data.encoded import EncodedDataset
from imagegpt.data.identity import pixel_hash
from imagegpt.data.sources.registry import open_images
from imagegpt.jobs.encode import encode

LABELS = np.arange(30) % 4


def rngs(*seeds):
    return [np.random.default_rng(seed) for seed in seeds]


@pytest.fixture(scope="module")
def place(tmp_path_factory, rgb, processor):
    """Thirty images in four classes, as arrays, as files and encoded."""
    place = tmp_path_factory.mktemp("datasets")
    for index, pixels in enumerate(rgb):
        path = place / "classes" / "abcd"[LABELS[index]] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    encode(place / "classes", place / "encoded", processor)
    return place


@pytest.fixture(params=["images", "encoded", "subset"])
def make(request, place, processor):
    """A function from an augmentation to a data set of the same images, in the order of the classes."""

    def make(augmentation="none"):
        if request.param == "encoded":
            return EncodedDataset(place / "encoded", augmentation=augmentation)
        images = ImageDataset(open_images(place / "classes"), processor, augmentation)
        if request.param == "images":
            return images
        return Subset(Subset(images, np.arange(30)[::-1]), np.arange(30)[::-1])

    return make


@pytest.fixture
def expected(rgb, processor):
    return processor(rgb[np.argsort(LABELS, kind="stable")])["input_ids"]


def test_all_kinds_give_the_same_ids_labels_and_hashes(make, rgb, expected, palette):
    dataset = make()
    assert (len(dataset), dataset.size, dataset.num_pixels, dataset.palette) == (30, (8, 8), 64, palette)
    assert dataset.classes == ["a", "b", "c", "d"]
    indices = np.array([28, 3, 3, 21, 0])
    ids = dataset.read(indices)
    assert ids.dtype == np.int64
    assert np.array_equal(ids, expected[indices])
    assert dataset.labels.tolist() == sorted(LABELS)
    assert dataset.read_labels(indices).tolist() == dataset.labels[indices].tolist()
    assert dataset.hashes.tolist() == [pixel_hash(image) for image in rgb[np.argsort(LABELS, kind="stable")]]
    assert dataset.read([]).shape == (0, 64)


@pytest.mark.parametrize("augmentation", ["flip", "reflect-crop-flip"])
def test_augmentation_is_that_of_the_ids_and_only_with_generators(make, expected, augmentation):
    dataset = make(augmentation)
    assert np.array_equal(dataset.read([5, 6]), expected[[5, 6]])
    moved = dataset.read([5, 6, 5], rngs(11, 12, 11))
    assert np.array_equal(moved[:2], find_augmentation(augmentation).augment_ids(expected[5:7], rngs(11, 12), (8, 8)))
    assert np.array_equal(moved[0], moved[2])
    assert len({row.tobytes() for row in dataset.read([5] * 8, rngs(*range(8)))}) > 1
    still = dataset.without_augmentation()
    assert np.array_equal(still.read([5, 6], rngs(11, 12)), expected[[5, 6]])
    assert dataset.augmentation.is_random
    assert not still.augmentation.is_random


def test_pickled_copies_read_the_same(make):
    dataset = make("flip")
    copy = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(copy.read([3, 4], rngs(0, 1)), dataset.read([3, 4], rngs(0, 1)))
    assert (copy.classes, copy.labels.tolist()) == (dataset.classes, dataset.labels.tolist())


def test_locating_images_leads_to_the_data_set_that_stores_them(make, expected):
    stored, indices = make().locate(np.array([7, 2]))
    assert not isinstance(stored, Subset)
    assert np.array_equal(stored.read(indices), expected[[7, 2]])


def test_a_users_own_loader_takes_them(make, expected):
    loaded = list(DataLoader(make(), batch_size=8))
    assert torch.cat([batch["input_ids"] for batch in loaded]).equal(torch.from_numpy(expected))
    assert torch.cat([batch["labels"] for batch in loaded]).tolist() == sorted(LABELS)
    assert make()[3]["input_ids"].equal(torch.from_numpy(expected[3]))
    assert make()[3]["labels"].shape == ()


def test_items_are_augmented_by_torchs_generator(make):
    dataset = make("reflect-crop-flip")
    torch.manual_seed(0)
    first = [dataset[5]["input_ids"] for _ in range(4)]
    torch.manual_seed(0)
    assert all(a.equal(dataset[5]["input_ids"]) for a in first)
    assert len({item.numpy().tobytes() for item in first}) > 1


@pytest.mark.slow
def test_a_users_own_workers_read_a_subset(place, expected):
    subset = Subset(EncodedDataset(place / "encoded"), np.arange(29, -1, -2))
    loader = DataLoader(subset, batch_size=8, num_workers=2, multiprocessing_context="spawn")
    assert torch.cat([batch["input_ids"] for batch in loader]).equal(torch.from_numpy(expected[29::-2].copy()))


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([30], IndexError, "images 30 to 30 were asked for, there are 30, numbered from 0"),
        ([0, -1], IndexError, "images -1 to 0 were asked for, there are 30, numbered from 0"),
        ([0.0], ValueError, "the indices are float64 (1,): give integers in one dimension"),
        ([[1]], ValueError, "the indices are int64 (1, 1): give integers in one dimension"),
        ([True], ValueError, "the indices are bool (1,): give integers in one dimension"),
    ],
)
def test_bad_indices(make, indices, error, message):
    with pytest.raises(error) as caught:
        make().read(np.array(indices))
    assert str(caught.value) == message


def test_one_generator_for_each_image(make):
    with pytest.raises(ValueError, match=r"^2 images and 1 generators were given: give one for each image$"):
        make().read([1, 2], rngs(0))


def test_images_without_classes_have_no_labels(tmp_path, rgb, processor):
    np.save(tmp_path / "a.npy", rgb)
    dataset = ImageDataset(open_images(tmp_path / "a.npy"), processor)
    assert (dataset.classes, dataset.labels, dataset.read_labels(np.arange(3))) == (None, None, None)
    assert list(dataset[0]) == ["input_ids"]


def test_crops_are_taken_from_the_whole_image(tmp_path, processor, palette, save):
    large = np.random.default_rng(4).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    save(all={"a.png": large})
    dataset = ImageDataset(open_images(tmp_path / "all"), processor, "random-resized-crop")
    on_white = np.asarray(
        Image.alpha_composite(Image.new("RGBA", (60, 40), "white"), Image.fromarray(large)).convert("RGB")
    )
    crop = random_resized_crop(on_white, np.random.default_rng(3), (8, 8))
    assert np.array_equal(dataset.read([0], rngs(3)), palette.encode(crop).reshape(1, -1))
    nearest = ImageGPTImageProcessor(palette, size=8, resample=Image.Resampling.NEAREST)
    other = ImageDataset(dataset.source, nearest, "random-resized-crop")
    assert not np.array_equal(other.read([0], rngs(3)), dataset.read([0], rngs(3)))
    center = ImageDataset(dataset.source, processor, "center-crop")
    assert np.array_equal(dataset.read([0]), center.read([0]))
    assert np.array_equal(dataset.without_augmentation().read([0], rngs(3)), center.read([0]))


def test_broken_images_have_no_hash_and_raise(tmp_path, processor, save, rgb):
    save(all={"a.png": rgb[0], "c.png": rgb[1]})
    (tmp_path / "all/b.png").write_bytes(b"text")
    dataset = ImageDataset(open_images(tmp_path / "all"), processor)
    assert [one.name for one in dataset.broken] == ["b.png"]
    assert np.flatnonzero(dataset.hashes).tolist() == [0, 2]
    assert len(dataset.read([0, 2])) == 2
    with pytest.raises(ValueError, match=r"b\.png is not an image that Pillow can read"):
        dataset.read([1])


def test_bad_input_is_one_sentence(place, processor):
    source = open_images(place / "classes")
    with pytest.raises(ValueError, match=r"^there is no augmentation 'blur': choose one of none, flip, reflect-crop"):
        ImageDataset(source, processor, "blur")
    with pytest.raises(ValueError, match=r"^this processor has no palette: give it one"):
        ImageDataset(source, ImageGPTImageProcessor(size=8), "flip")
    with pytest.raises(ValueError, match=r"^do_resize is False and encoded images are all of one size"):
        ImageDataset(source, ImageGPTImageProcessor(processor.palette, size=8, do_resize=False), "flip")
    with pytest.raises(ValueError, match=r"^data.augmentation is 'random-resized-crop', and data.train has ids"):
        EncodedDataset(place / "encoded", augmentation="random-resized-crop")
