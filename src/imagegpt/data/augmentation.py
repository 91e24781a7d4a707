"""Random shifts, flips and crops of images, as training augmentations.

Every function takes a numpy generator, the only source of randomness. Augmentations that only move pixels apply to
token ids: the same as moving the pixels of the picture first and encoding it then, and much cheaper.

Axis letters: n images, H height, W width, C channels, T = H * W pixels in raster order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Integer, UInt8
from PIL import Image

from imagegpt.images.reading import resize_and_crop

Size = tuple[int, int]  # height, width

_PADDING = 4
_SHORTER_SIDE = (256, 384)  # from the paper, both included
_CROP = 224


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A way to vary images.

    Attributes:
        name: as in a recipe.
        move: given (H, W) and a generator, chooses where each pixel comes from: the rows (H,) and the columns (W,).
            None if colours change, or if nothing does.
        crop: makes an image of size (H, W) from one of any size, with one of Pillow's filters. None if images are
            resized first, by the processor.
        evaluation: the name of the deterministic augmentation that replaces this one in evaluation: "none" or
            "center-crop".
    """

    name: str
    move: Callable[[Size, np.random.Generator], tuple[np.ndarray, np.ndarray]] | None = None
    crop: Callable[[UInt8[np.ndarray, "h w 3"], np.random.Generator | None, Size, int], np.ndarray] | None = None
    evaluation: str = "none"

    @property
    def applies_to_ids(self) -> bool:
        """Whether it can be applied to token ids."""
        return self.crop is None

    @property
    def is_random(self) -> bool:
        """Whether its result depends on the generator."""
        return self.name != self.evaluation

    @property
    def for_evaluation(self) -> "Augmentation":
        """The deterministic augmentation that replaces this one in evaluation."""
        return AUGMENTATIONS[self.evaluation]

    def augment_ids(
        self, ids: Integer[np.ndarray, "n t"], rngs: Sequence[np.random.Generator], size: Size
    ) -> Integer[np.ndarray, "n t"]:
        """Augment images given as token ids, each with its own generator.

        Raises: ValueError if this augmentation changes colours, if there is not one generator for each image, or if the
            images are not of that size.
        """
        if not self.applies_to_ids:
            raise ValueError(
                f"the augmentation {self.name} changes colours, which token ids cannot: train on the images themselves"
            )
        if len(rngs) != len(ids) or ids.shape[1] != size[0] * size[1]:
            raise ValueError(
                f"there are {len(ids)} images of {ids.shape[1]} ids and {len(rngs)} generators for size {size}: "
                "give one generator for each image, and the size of the images"
            )
        if self.move is None or not len(ids):
            return ids
        rows, columns = (np.stack(axis) for axis in zip(*(self.move(size, rng) for rng in rngs), strict=True))
        pixels = rows[:, :, None] * size[1] + columns[:, None, :]
        return np.take_along_axis(ids, pixels.reshape(len(ids), -1), axis=1)


def flip(size: Size, rng: np.random.Generator) -> tuple[Int64[np.ndarray, " h"], Int64[np.ndarray, " w"]]:
    """Mirror half of the images, left to right: the rows and columns to take."""
    columns = np.arange(size[1])
    return np.arange(size[0]), columns[::-1] if rng.random() < 0.5 else columns


def reflect_crop_flip(size: Size, rng: np.random.Generator) -> tuple[Int64[np.ndarray, " h"], Int64[np.ndarray, " w"]]:
    """For CIFAR: pad by 4 reflected pixels on each side, crop the original size at random, mirror half of the images.

    The edge pixel is not repeated, as with numpy's "reflect".
    Source: iGPT paper, fine-tuning.
    """
    top, left = (int(shift) - _PADDING for shift in rng.integers(0, 2 * _PADDING + 1, 2))
    rows, columns = flip(size, rng)
    return _reflected(rows + top, size[0]), _reflected(columns + left, size[1])


def random_resized_crop(
    rgb: UInt8[np.ndarray, "h w 3"],
    rng: np.random.Generator | None,
    size: Size,
    resample: int = Image.Resampling.BILINEAR,
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """For ImageNet: resize the shorter side to 256 to 384 at random, crop 224 x 224 at random, then resize to `size`.

    Source: iGPT paper, pre-training, which does not name the filter.
    """
    assert rng is not None, "a random crop needs a generator"
    shorter = int(rng.integers(_SHORTER_SIDE[0], _SHORTER_SIDE[1] + 1))
    width, height = _scaled(rgb, shorter)
    left, top = int(rng.integers(0, width - _CROP + 1)), int(rng.integers(0, height - _CROP + 1))
    return _cropped(rgb, (width, height), (left, top), size, resample)


def center_crop(
    rgb: UInt8[np.ndarray, "h w 3"],
    rng: np.random.Generator | None,
    size: Size,
    resample: int = Image.Resampling.BILINEAR,
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """`random_resized_crop` for evaluation: resize the shorter side to 224, crop the centre, then resize to `size`.

    Source: iGPT paper, pre-training.
    """
    width, height = _scaled(rgb, _CROP)
    return _cropped(rgb, (width, height), ((width - _CROP) // 2, (height - _CROP) // 2), size, resample)


AUGMENTATIONS = {
    one.name: one
    for one in (
        Augmentation(name="none"),
        Augmentation(name="flip", move=flip),
        Augmentation(name="reflect-crop-flip", move=reflect_crop_flip),
        Augmentation(name="random-resized-crop", crop=random_resized_crop, evaluation="center-crop"),
        Augmentation(name="center-crop", crop=center_crop, evaluation="center-crop"),
    )
}


def find_augmentation(name: str) -> Augmentation:
    """Return the augmentation of that name.

    Raises: ValueError if there is none.
    """
    if name not in AUGMENTATIONS:
        raise ValueError(f"there is no augmentation {name!r}: choose one of {', '.join(AUGMENTATIONS)}")
    return AUGMENTATIONS[name]


def _reflected(positions: Int64[np.ndarray, " n"], length: int) -> Int64[np.ndarray, " n"]:
    """Mirror positions outside 0 to length - 1 at the edges, however far out they are."""
    period = max(1, 2 * (length - 1))
    inside = positions % period
    return np.minimum(inside, period - inside) if length > 1 else inside


def _scaled(rgb: np.ndarray, shorter: int) -> tuple[int, int]:
    """The width and height of an image whose shorter side is resized to a length."""
    height, width = rgb.shape[:2]
    scale = shorter / min(height, width)
    return max(shorter, round(width * scale)), max(shorter, round(height * scale))


def _cropped(
    rgb: np.ndarray, scaled: tuple[int, int], corner: tuple[int, int], size: Size, resample: int
) -> UInt8[np.ndarray, "h w 3"]:
    crop = resize_and_crop(Image.fromarray(rgb), scaled, corner, (_CROP, _CROP), resample)
    return np.asarray(crop.resize((size[1], size[0]), Image.Resampling(resample)))
