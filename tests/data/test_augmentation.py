import numpy as np
import pytest
from PIL import Image

from imagegpt.data.augmentation import (
    AUGMENTATIONS,
    center_crop,
    find_augmentation,
    flip,
    random_resized_crop,
    reflect_crop_flip,
)

MOVES = ["none", "flip", "reflect-crop-flip"]  # applied to ids


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


def moved(name, image, rng):
    """An image whose pixels were moved as `augment_ids` moves their ids."""
    ids = np.arange(image.shape[0] * image.shape[1])[None]
    pixels = find_augmentation(name).augment_ids(ids, [rng], image.shape[:2])[0]
    return image.reshape(len(pixels), -1)[pixels].reshape(image.shape)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 11), (5, 5), (3, 2)])
def test_reflect_crop_flip_is_pad_crop_flip(height, width):
    image = np.arange(height * width * 3).astype(np.uint8).reshape(height, width, 3)
    for top in range(9):
        for left in (0, 3, 4, 8):
            for mirrored in (False, True):
                rng = Draws([top, left], [0.49 if mirrored else 0.5])
                assert np.array_equal(moved("reflect-crop-flip", image, rng), padded_crop(image, top, left, mirrored))
                assert rng.asked == [(0, 9)]


def test_flip_by_eye():
    image = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    assert moved("flip", image, Draws(random=[0.1])).tolist() == [[3, 2, 1], [6, 5, 4]]
    assert moved("flip", image, Draws(random=[0.9])).tolist() == image.tolist()
    assert moved("none", image, Draws()).tolist() == image.tolist()


def test_a_single_row_of_pixels_can_be_moved():
    rows, columns = reflect_crop_flip((1, 3), Draws([0, 8], [0.9]))
    assert (rows.tolist(), columns.tolist()) == ([0], [0, 1, 2])  # 4 to the right: 4 5 6 is 0 1 2 again


def test_half_are_mirrored_and_every_shift_occurs():
    rng = np.random.default_rng(0)
    moves = [reflect_crop_flip((32, 32), rng) for _ in range(3000)]
    tops = {int(rows[10]) for rows, _ in moves}
    mirrored = sum(columns[10] > columns[11] for _, columns in moves)
    assert tops == set(range(6, 15))
    assert 1400 < mirrored < 1600
    assert 700 < sum(flip((4, 4), rng)[1][0] == 3 for _ in range(1500)) < 800


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("size", [(8, 8), (6, 11), (4, 4)])
def test_ids_of_moved_pixels_are_moved_ids(palette, name, size):
    rgb = np.random.default_rng(1).integers(0, 256, (9, *size, 3), dtype=np.uint8)
    images = np.stack([moved(name, image, np.random.default_rng((7, row))) for row, image in enumerate(rgb)])
    rngs = [np.random.default_rng((7, row)) for row in range(9)]
    ids = find_augmentation(name).augment_ids(palette.encode(rgb).reshape(9, -1), rngs, size)
    assert np.array_equal(ids, palette.encode(images).reshape(9, -1))
    assert name == "none" or not np.array_equal(images, rgb)
    assert find_augmentation(name).applies_to_ids


def test_no_images_give_no_ids():
    for name in MOVES:
        assert find_augmentation(name).augment_ids(np.empty((0, 16), np.int64), [], (4, 4)).shape == (0, 16)


def test_ids_keep_their_type():
    ids = np.arange(16, dtype=np.uint16)[None]
    assert find_augmentation("flip").augment_ids(ids, [np.random.default_rng(0)], (4, 4)).dtype == np.uint16


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


def test_bad_input_is_one_sentence():
    with pytest.raises(
        ValueError, match=r"^there is no augmentation 'blur': choose one of none, flip, reflect-crop-flip"
    ):
        find_augmentation("blur")
    for name in ("random-resized-crop", "center-crop"):
        augmentation = AUGMENTATIONS[name]
        assert not augmentation.applies_to_ids
        with pytest.raises(ValueError, match=rf"^the augmentation {name} changes colours, which token ids cannot"):
            augmentation.augment_ids(np.zeros((1, 4), np.int64), [np.random.default_rng()], (2, 2))
    with pytest.raises(ValueError, match=r"^there are 2 images of 4 ids and 1 generators for size \(2, 2\)"):
        AUGMENTATIONS["flip"].augment_ids(np.zeros((2, 4), np.int64), [np.random.default_rng()], (2, 2))


def test_only_random_augmentations_are_replaced_in_evaluation():
    replaced = {name: one.for_evaluation.name for name, one in AUGMENTATIONS.items()}
    assert replaced == {
        "none": "none",
        "flip": "none",
        "reflect-crop-flip": "none",
        "random-resized-crop": "center-crop",
        "center-crop": "center-crop",
    }
    assert [name for name, one in AUGMENTATIONS.items() if not one.is_random] == ["none", "center-crop"]
