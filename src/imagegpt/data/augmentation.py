"""Moving, mirroring and cropping pictures at random, before each of them is shown to a model.

Every function takes a generator and nothing else that is random. Moving pixels without changing their colours may as
well be done to their ids: `Augmentation.ids` gives exactly the ids of what `Augmentation.picture` gives for the same
generator. Each picture has a generator of its own, so that it does not matter what else is in its batch.

Axis letters: N images, H height, W width, C channels, T = H * W pixels in raster order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer, UInt8
from PIL import Image

from imagegpt.data.palettes import checked_palette
from imagegpt.data.sources.base import ImageSource
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.images.reading import read_image, scaled_crop

Seed = int | Sequence[int]  # what numpy.random.default_rng takes; (seed, step, position) for example
Size = tuple[int, int]  # height, width

_PADDING = 4
_SHORTER_SIDE = (256, 384)  # of the paper, both included
_CROP = 224


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A way to vary pictures.

    Attributes:
        name: as in a recipe.
        moves: draws which pixel goes where: for (H, W) and a generator the rows (H,) and columns (W,) to take. None if
            it is not a matter of moving pixels.
        crop: makes a picture of any size into one of (H, W), with a filter of Pillow's. None if pictures
            are brought to that size first.
        still: the name of what is done in its place where nothing may be random: "none", or "center-crop".
    """

    name: str
    moves: Callable[[Size, np.random.Generator], tuple[np.ndarray, np.ndarray]] | None = None
    crop: Callable[[UInt8[np.ndarray, "h w 3"], np.random.Generator, Size, int], np.ndarray] | None = None
    still: str = "none"

    @property
    def is_exact(self) -> bool:
        """Whether it may as well be done to ids."""
        return self.crop is None

    def picture(self, rgb: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w c"]:
        """Vary one picture, which keeps its size.

        Raises: ValueError for a way that crops: it needs the size to make, see `crop`.
        """
        if self.crop is not None:
            raise ValueError(f"the augmentation {self.name} crops larger pictures: give them to it at their full size")
        if self.moves is None:
            return rgb
        rows, columns = self.moves((rgb.shape[0], rgb.shape[1]), rng)
        return rgb[rows[:, None], columns]

    def ids(
        self, ids: Integer[np.ndarray, "n t"], rngs: Sequence[np.random.Generator], size: Size
    ) -> Integer[np.ndarray, "n t"]:
        """Vary pictures by their ids, each with its own generator.

        Raises: ValueError if this would not be exact, or there is not one generator for each picture of that size.
        """
        if not self.is_exact:
            raise ValueError(
                f"the augmentation {self.name} changes colours, which ids cannot: train on the pictures themselves"
            )
        if len(rngs) != len(ids) or ids.shape[1] != size[0] * size[1]:
            raise ValueError(
                f"there are {len(ids)} images of {ids.shape[1]} ids and {len(rngs)} generators for size {size}: "
                "give a generator an image, and the size they have"
            )
        if self.moves is None or not len(ids):
            return ids
        drawn = [self.moves(size, rng) for rng in rngs]
        rows, columns = (np.stack(several) for several in zip(*drawn, strict=True))
        pixels = rows[:, :, None] * size[1] + columns[:, None, :]
        return np.take_along_axis(ids, pixels.reshape(len(ids), -1), axis=1)


def flip(size: Size, rng: np.random.Generator) -> tuple[Int64[np.ndarray, " h"], Int64[np.ndarray, " w"]]:
    """Mirror half of the pictures, left to right: the rows and columns to take."""
    columns = np.arange(size[1])
    return np.arange(size[0]), columns[::-1] if rng.random() < 0.5 else columns


def reflect_crop_flip(size: Size, rng: np.random.Generator) -> tuple[Int64[np.ndarray, " h"], Int64[np.ndarray, " w"]]:
    """CIFAR's way: pad with 4 mirrored pixels on each side, crop the former size at random, mirror half of them.

    The edge itself is not repeated, as in numpy's "reflect".
    Source: iGPT paper, fine-tuning.
    """
    top, left = (int(shift) - _PADDING for shift in rng.integers(0, 2 * _PADDING + 1, 2))
    rows, columns = flip(size, rng)
    return _reflected(rows + top, size[0]), _reflected(columns + left, size[1])


def random_resized_crop(
    rgb: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator, size: Size, resample: int = Image.Resampling.BILINEAR
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """ImageNet's way: the shorter side to 256 to 384 at random, 224 x 224 from anywhere in it, then down to `size`.

    Source: iGPT paper, pre-training; the filter is not stated there.
    """
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
    """What goes with `random_resized_crop` for testing: the shorter side to 224, the middle, then down to `size`.

    Source: iGPT paper, pre-training.
    """
    width, height = _scaled(rgb, _CROP)
    return _cropped(rgb, (width, height), ((width - _CROP) // 2, (height - _CROP) // 2), size, resample)


AUGMENTATIONS = {
    one.name: one
    for one in (
        Augmentation(name="none"),
        Augmentation(name="flip", moves=flip),
        Augmentation(name="reflect-crop-flip", moves=reflect_crop_flip),
        Augmentation(name="random-resized-crop", crop=random_resized_crop, still="center-crop"),
        Augmentation(name="center-crop", crop=center_crop, still="center-crop"),
    )
}


def find_augmentation(name: str) -> Augmentation:
    """The augmentation of a name.

    Raises: ValueError if there is none.
    """
    if name not in AUGMENTATIONS:
        raise ValueError(f"there is no augmentation {name!r}: choose one of {', '.join(AUGMENTATIONS)}")
    return AUGMENTATIONS[name]


class AugmentedImages:
    """Pictures that are read, varied and encoded whenever they are asked for. Can be pickled.

    Args:
        source: of the pictures. Leave broken ones out by asking only for `EncodedImages.indices`.
        processor: reads, resizes and encodes them; needs a palette.
        augmentation: its name, see `AUGMENTATIONS`.
    Raises: ValueError if there is no such augmentation or no palette.
    """

    def __init__(self, source: ImageSource, processor: ImageGPTImageProcessor, augmentation: str) -> None:
        self.source, self.processor = source, processor
        self._augmentation = find_augmentation(augmentation)
        self.palette = checked_palette(processor)
        self.height, self.width = processor.size["height"], processor.size["width"]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.source, self.processor, self._augmentation.name)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def num_pixels(self) -> int:
        """T."""
        return self.height * self.width

    @property
    def classes(self) -> list[str] | None:
        """The name of each label, None if there are none."""
        return self.source.classes

    @property
    def still(self) -> str:
        """What is done to pictures that are not varied: "none", or "center-crop"."""
        return self._augmentation.still

    def batch(
        self, indices: Sequence[int], seeds: Sequence[Seed] | None
    ) -> tuple[Int64[np.ndarray, "n t"], Int64[np.ndarray, " n"]]:
        """Some pictures, each varied as its own seed says: the same picture and seed give the same ids.

        Args:
            indices: of the pictures in their source.
            seeds: for each of them what `numpy.random.default_rng` takes, such as (seed, step, position in the batch);
                None varies nothing, as for validation.
        Returns: the ids, and the labels, -1 where there is none.
        Raises: IndexError if there is no such picture; ValueError or FileNotFoundError if one cannot be read, or there
            is not a seed for each.
        """
        if seeds is not None and len(indices) != len(seeds):
            raise ValueError(f"{len(indices)} images and {len(seeds)} seeds were given: give a seed an image")
        rgb = np.empty((len(indices), self.height, self.width, 3), np.uint8)
        labels = np.full(len(indices), -1, np.int64)
        way = self._augmentation if seeds is not None else find_augmentation(self._augmentation.still)
        for row, index in enumerate(indices):
            example = self.source[int(index)]
            rgb[row] = self._varied(example.image, way, np.random.default_rng(0 if seeds is None else seeds[row]))
            labels[row] = -1 if example.label is None else example.label
        return self.palette.encode(rgb).reshape(len(indices), self.num_pixels), labels

    def _varied(self, image: Any, way: Augmentation, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
        if way.crop is None:
            return way.picture(self.processor.to_rgb([image])[0], rng)
        whole = np.asarray(read_image(image, self.processor.background))
        return way.crop(whole, rng, (self.height, self.width), self.processor.resample)


def _reflected(places: Int64[np.ndarray, " n"], length: int) -> Int64[np.ndarray, " n"]:
    """Places outside 0 to length - 1 mirrored at the edges, however far out they are."""
    period = max(1, 2 * (length - 1))
    inside = places % period
    return np.minimum(inside, period - inside) if length > 1 else inside


def _scaled(rgb: np.ndarray, shorter: int) -> tuple[int, int]:
    """Width and height of a picture whose shorter side is brought to a length."""
    height, width = rgb.shape[:2]
    scale = shorter / min(height, width)
    return max(shorter, round(width * scale)), max(shorter, round(height * scale))


def _cropped(
    rgb: np.ndarray, scaled: tuple[int, int], corner: tuple[int, int], size: Size, resample: int
) -> UInt8[np.ndarray, "h w 3"]:
    crop = scaled_crop(Image.fromarray(rgb), scaled, corner, (_CROP, _CROP), resample)
    return np.asarray(crop.resize((size[1], size[0]), Image.Resampling(resample)))
