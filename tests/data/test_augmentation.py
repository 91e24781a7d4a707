import pickle

import numpy as np
import pytest
from PIL import Image

from imagegpt import ImageGPTImageProcessor
from imagegpt.data.augmentation import (
    AUGMENTATIONS,
    AugmentedImages,
    center_crop,
    find_augmentation,
    flip,
    random_resized_crop,
    reflect_crop_flip,
)
from imagegpt.data.sources.registry import open_images

EXACT = ["none", "flip", "reflect-crop-flip"]


class Draws:
    """A generator that gives what it is told, and notes what it was asked for."""

    def __init__(self, integers=(), random=()):
        self.given, self.randoms, self.asked = list(integers), list(random), []

    def integers(self, low, high, size=None):
        self.asked.append((low, high))
        taken = [self.given.pop(0) for _ in range(size or 1)]
        assert all(low <= one < high for one in taken)
        return np.array(taken) if size else taken[0]

    def random(self):
        return self.randoms.pop(0)


def padded_crop(image, top, left, mirrored):
    """The definition, by numpy's own padding: top and left count in the padded image."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((4, 4), (4, 4), *[(0, 0)] * (image.ndim - 2)), mode="reflect")
    crop = padded[top : top + height, left : left + width]
    return crop[:, ::-1] if mirrored else crop


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 11), (5, 5), (3, 2)])
def test_reflect_crop_flip_is_pad_crop_flip(height, width):
    image = np.arange(height * width * 3).astype(np.uint8).reshape(height, width, 3)
    way = find_augmentation("reflect-crop-flip")
    for top in range(9):
        for left in (0, 3, 4, 8):
            for mirrored in (False, True):
                rng = Draws([top, left], [0.49 if mirrored else 0.5])
                assert np.array_equal(way.picture(image, rng), padded_crop(image, top, left, mirrored))
                assert rng.asked == [(0, 9)]


def test_flip_by_eye():
    image = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    way = find_augmentation("flip")
    assert way.picture(image, Draws(random=[0.1])).tolist() == [[3, 2, 1], [6, 5, 4]]
    assert way.picture(image, Draws(random=[0.9])).tolist() == image.tolist()
    assert find_augmentation("none").picture(image, Draws()) is image


def test_a_single_row_of_pixels_can_be_moved():
    rows, columns = reflect_crop_flip((1, 3), Draws([0, 8], [0.9]))
    assert (rows.tolist(), columns.tolist()) == ([0], [0, 1, 2])  # 4 to the right: 4 5 6 is 0 1 2 again


def test_half_are_mirrored_and_every_shift_is_drawn():
    rng = np.random.default_rng(0)
    drawn = [reflect_crop_flip((32, 32), rng) for _ in range(3000)]
    tops = {int(rows[10]) for rows, _ in drawn}
    mirrored = sum(columns[10] > columns[11] for _, columns in drawn)
    assert tops == set(range(6, 15))
    assert 1400 < mirrored < 1600
    assert 700 < sum(flip((4, 4), rng)[1][0] == 3 for _ in range(1500)) < 800


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("size", [(8, 8), (6, 11), (4, 4)])
def test_ids_of_moved_pixels_are_moved_ids(palette, name, size):
    rgb = np.random.default_rng(1).integers(0, 256, (9, *size, 3), dtype=np.uint8)
    way = find_augmentation(name)
    moved = np.stack([way.picture(image, np.random.default_rng((7, row))) for row, image in enumerate(rgb)])
    ids = way.ids(palette.encode(rgb).reshape(9, -1), [np.random.default_rng((7, row)) for row in range(9)], size)
    assert np.array_equal(ids, palette.encode(moved).reshape(9, -1))
    assert name == "none" or not np.array_equal(moved, rgb)
    assert way.is_exact


def test_no_images_give_no_ids():
    for name in EXACT:
        assert find_augmentation(name).ids(np.empty((0, 16), np.int64), [], (4, 4)).shape == (0, 16)


def test_ids_keep_their_type():
    ids = np.arange(16, dtype=np.uint16)[None]
    assert find_augmentation("flip").ids(ids, [np.random.default_rng(0)], (4, 4)).dtype == np.uint16


def test_random_resized_crop_is_the_papers():
    """A landscape picture of 50 x 100; the shorter side to 300, so 300 x 600; a crop of 224 from (top 70, left 370)."""
    rgb = np.random.default_rng(2).integers(0, 256, (50, 100, 3), dtype=np.uint8)
    rng = Draws([300, 370, 70])
    crop = random_resized_crop(rgb, rng, (32, 48))
    assert rng.asked == [(256, 385), (0, 600 - 224 + 1), (0, 300 - 224 + 1)]
    scaled = Image.fromarray(rgb).resize((600, 300), Image.Resampling.BILINEAR)
    expected = scaled.crop((370, 70, 594, 294)).resize((48, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(crop, np.asarray(expected))
    other = random_resized_crop(rgb, Draws([300, 370, 70]), (32, 48), Image.Resampling.NEAREST)
    assert not np.array_equal(other, crop)


def test_random_resized_crop_at_its_edges():
    rgb = np.zeros((90, 60, 3), np.uint8)
    for draws in ([256, 0, 0], [256, 32, 160], [384, 160, 352]):
        assert random_resized_crop(rgb, Draws(draws), (8, 8)).shape == (8, 8, 3)


def test_center_crop_is_the_papers():
    rgb = np.random.default_rng(2).integers(0, 256, (100, 50, 3), dtype=np.uint8)
    scaled = Image.fromarray(rgb).resize((224, 448), Image.Resampling.BILINEAR)
    expected = scaled.crop((0, 112, 224, 336)).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(center_crop(rgb, None, (16, 16)), np.asarray(expected))


@pytest.fixture
def labelled(tmp_path, rgb):
    np.savez(tmp_path / "a.npz", images=rgb, labels=np.arange(30) - 1)
    return open_images(tmp_path / "a.npz")


def test_a_picture_depends_on_its_own_seed_only(labelled, processor):
    images = AugmentedImages(labelled, processor, "reflect-crop-flip")
    ids, labels = images.batch([3, 0, 3], [(1, 9, 0), (1, 9, 1), (1, 9, 2)])
    assert (ids.shape, ids.dtype, labels.tolist()) == ((3, 64), np.int64, [2, -1, 2])
    alone, _ = images.batch(np.array([3]), [(1, 9, 2)])
    assert np.array_equal(alone[0], ids[2])
    assert not np.array_equal(ids[0], ids[2])
    copy = pickle.loads(pickle.dumps(images))
    assert np.array_equal(copy.batch([3, 0, 3], [(1, 9, 0), (1, 9, 1), (1, 9, 2)])[0], ids)
    assert (len(images), images.num_pixels, images.classes) == (30, 64, None)


@pytest.mark.parametrize("name", EXACT)
def test_pictures_on_the_fly_are_their_ids_augmented(labelled, processor, rgb, name):
    found, _ = AugmentedImages(labelled, processor, name).batch([5, 6], [11, 12])
    encoded = processor(rgb[5:7])["input_ids"]
    way, rngs = find_augmentation(name), [np.random.default_rng(seed) for seed in (11, 12)]
    assert np.array_equal(found, way.ids(encoded, rngs, (8, 8)))


def test_crops_are_taken_from_the_whole_picture(tmp_path, processor, palette, save):
    large = np.random.default_rng(4).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    save(all={"a.png": large})
    images = AugmentedImages(open_images(tmp_path / "all"), processor, "random-resized-crop")
    on_white = np.asarray(
        Image.alpha_composite(Image.new("RGBA", (60, 40), "white"), Image.fromarray(large)).convert("RGB")
    )
    crop = random_resized_crop(on_white, np.random.default_rng(3), (8, 8))
    assert np.array_equal(images.batch([0], [3])[0], palette.encode(crop).reshape(1, -1))
    nearest = ImageGPTImageProcessor(palette, size=8, resample=Image.Resampling.NEAREST)
    other = AugmentedImages(images.source, nearest, "random-resized-crop")
    assert not np.array_equal(other.batch([0], [3])[0], images.batch([0], [3])[0])


def test_bad_input_is_one_sentence(labelled, processor):
    with pytest.raises(
        ValueError, match=r"^there is no augmentation 'blur': choose one of none, flip, reflect-crop-flip"
    ):
        AugmentedImages(labelled, processor, "blur")
    with pytest.raises(ValueError, match=r"^this processor has no palette: give it one"):
        AugmentedImages(labelled, ImageGPTImageProcessor(size=8), "flip")
    with pytest.raises(ValueError, match=r"^do_resize is False and encoded images are all of one size"):
        AugmentedImages(labelled, ImageGPTImageProcessor(processor.palette, size=8, do_resize=False), "flip")
    with pytest.raises(ValueError, match=r"^2 images and 1 seeds were given: give a seed an image$"):
        AugmentedImages(labelled, processor, "flip").batch([1, 2], [3])
    with pytest.raises(IndexError, match=r"^there is no image 30 in "):
        AugmentedImages(labelled, processor, "flip").batch([30], [3])
    for name in ("random-resized-crop", "center-crop"):
        way = AUGMENTATIONS[name]
        assert not way.is_exact
        with pytest.raises(ValueError, match=rf"^the augmentation {name} changes colours, which ids cannot"):
            way.ids(np.zeros((1, 4), np.int64), [np.random.default_rng()], (2, 2))
        with pytest.raises(ValueError, match=rf"^the augmentation {name} crops larger pictures"):
            way.picture(np.zeros((4, 4, 3), np.uint8), np.random.default_rng())
    with pytest.raises(ValueError, match=r"^there are 2 images of 4 ids and 1 generators for size \(2, 2\)"):
        AUGMENTATIONS["flip"].ids(np.zeros((2, 4), np.int64), [np.random.default_rng()], (2, 2))
