"""What a recipe calls its data, as images to train on.

Axis letters: N images, B of them, T pixels in raster order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from imagegpt.checkpoints.loading import find_folder
from imagegpt.data.augmentation import Augmentation, AugmentedImages, find_augmentation
from imagegpt.data.digits import load_digits
from imagegpt.data.encoded import EncodedImages
from imagegpt.data.encoding_folder import MANIFEST
from imagegpt.data.sources import list_splits, open_images
from imagegpt.data.splits import canonical
from imagegpt.data.tables import saved_splits
from imagegpt.palette import ColorPalette
from imagegpt.processing import ImageGPTImageProcessor
from imagegpt.training.feed import Images
from imagegpt.training.recipes import DataRecipe

_DIGITS = "digits"


class IdImages:
    """Images whose ids are at hand, some or all of those of a table; moved about when they are read.

    Args:
        table: gives the ids (B, T) of rows, and is cheap to pickle.
        labels: of each row, -1 where there is none; None if there are none.
        size: height and width.
        rows: which rows these images are; None is all.
        augmentation: one that moves pixels only; None does nothing.
    """

    def __init__(
        self,
        table: Any,
        labels: Int64[np.ndarray, " n"] | None,
        size: tuple[int, int],
        rows: Int64[np.ndarray, " m"] | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        self._table, self._labels, self._size, self._augmentation = table, labels, size, augmentation
        self._rows = rows

    def __len__(self) -> int:
        return len(self._table) if self._rows is None else len(self._rows)

    def read(
        self, indices: Int64[np.ndarray, " b"], generators: Sequence[np.random.Generator]
    ) -> tuple[Int64[np.ndarray, "b t"], Int64[np.ndarray, " b"] | None]:
        """See `feed.Images`; without generators nothing is moved."""
        rows = indices if self._rows is None else self._rows[indices]
        ids = self._table.ids(rows)
        if self._augmentation is not None and generators:
            ids = np.ascontiguousarray(self._augmentation.ids(ids, generators, self._size))
        return ids, None if self._labels is None else self._labels[rows]


class PictureImages:
    """Pictures that are read, varied and encoded when they are asked for.

    Args:
        pictures: of a source, with an augmentation.
        rows: which of them these images are; None is all.
    """

    def __init__(self, pictures: AugmentedImages, rows: Int64[np.ndarray, " m"] | None = None) -> None:
        self._pictures, self._rows = pictures, rows

    def __len__(self) -> int:
        return len(self._pictures) if self._rows is None else len(self._rows)

    def read(
        self, indices: Int64[np.ndarray, " b"], generators: Sequence[np.random.Generator]
    ) -> tuple[Int64[np.ndarray, "b t"], Int64[np.ndarray, " b"] | None]:
        """See `feed.Images`."""
        rows = indices if self._rows is None else self._rows[indices]
        seeds = [int(one.integers(1 << 63)) for one in generators] if generators else [0] * len(rows)
        ids, labels = self._pictures.batch(rows.tolist(), seeds)
        return ids, None if self._pictures.classes is None else labels


class ArrayTable:
    """Ids in memory, as a table."""

    def __init__(self, ids: Int64[np.ndarray, "n t"]) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self, rows: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, "b t"]:
        """Of some rows."""
        return self._ids[rows]


@dataclass(frozen=True, kw_only=True)
class Data:
    """All images of a run, in one palette and one size.

    Attributes:
        name: what the recipe calls the training images.
        train: what the weights are updated with.
        validation: what every choice is made with.
        test: what the number in the end is of, if there is any.
        processor: makes ids of images and images of ids.
        classes: their names, if the images have labels.
    """

    name: str
    train: Images
    validation: Images
    test: Images | None
    processor: ImageGPTImageProcessor
    classes: list[str] | None

    @property
    def palette(self) -> ColorPalette:
        """What the ids stand for."""
        assert self.processor.palette is not None, "it was checked when the data were opened"
        return self.processor.palette

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.processor.size["height"], self.processor.size["width"]

    @property
    def num_pixels(self) -> int:
        """T."""
        return math.prod(self.size)


def open_data(recipe: DataRecipe, seed: int) -> Data:
    """Open what a recipe names.

    Args:
        recipe: names it.
        seed: decides which images are set aside to validate, where the recipe names none.
    Raises: ValueError or OSError, in one sentence, if something is missing or does not fit together.
    """
    if recipe.train == _DIGITS:
        return _digits(recipe)
    parts = {"train": recipe.train, "validation": recipe.validation, "test": recipe.test}
    if _is_encoded(recipe.train):
        return _encoded(recipe, parts, seed)
    if recipe.palette is None or recipe.side is None:
        missing = "palette" if recipe.palette is None else "side"
        raise ValueError(
            f"data.{missing} is missing, and {recipe.train} is not encoded: give data.palette and data.side, or encode "
            "it first (imagegpt encode)"
        )
    processor = ImageGPTImageProcessor(palette=_palette(recipe.palette), size=recipe.side)
    return _pictures(recipe, parts, seed, processor)


def data_for(place: str, model: str, processor: ImageGPTImageProcessor) -> Data:
    """Open images that a model is to be tried on.

    Args:
        place: as `data.train` of a recipe.
        model: its name, for people.
        processor: of the model; pictures are encoded with it.
    Raises: ValueError or OSError, in one sentence, if there are no such images, or their ids mean something else.
    """
    if holds_ids(place):
        data = open_data(DataRecipe(train=place), seed=0)
        if data.num_pixels != processor.size["height"] * processor.size["width"]:
            raise ValueError(
                f"the model {model} makes images of {processor.size['height'] * processor.size['width']} pixels, those "
                f"of {place} have {data.num_pixels}: choose a model made for them"
            )
        if data.palette != processor.palette:
            raise ValueError(
                f"the model {model} has another palette than {place}, so their likelihoods mean different things: "
                "choose a model made for them"
            )
        return data
    return _pictures(DataRecipe(train=place), {"train": place, "validation": None, "test": None}, 0, processor)


def _digits(recipe: DataRecipe) -> Data:
    for name in ("validation", "test", "palette", "side"):
        if getattr(recipe, name) is not None:
            raise ValueError(
                f"data.train is digits and data.{name} {getattr(recipe, name)!r}: digits have their own, leave it out"
            )
    data = load_digits()
    images = {
        name: IdImages(
            ArrayTable(part.ids.numpy()),
            part.labels.numpy(),
            (data.side, data.side),
            augmentation=_moving(recipe.augmentation) if name == "train" else None,
        )
        for name, part in (("train", data.train), ("validation", data.validation), ("test", data.test))
    }
    processor = ImageGPTImageProcessor(palette=data.palette, size=data.side)
    return Data(name=_DIGITS, processor=processor, classes=[str(digit) for digit in range(10)], **images)


def _encoded(recipe: DataRecipe, parts: dict[str, str | None], seed: int) -> Data:
    for name in ("palette", "side"):
        if getattr(recipe, name) is not None:
            raise ValueError(
                f"data.{name} is {getattr(recipe, name)!r}, but {recipe.train} is encoded already: leave it out"
            )
    assert parts["train"] is not None
    splits = _encoded_splits(parts["train"])
    tables = {"train": EncodedImages.load(parts["train"], "train" if splits else None)}
    for name in ("validation", "test"):
        place = parts[name]
        if place is not None:
            tables[name] = EncodedImages.load(place, name if _encoded_splits(place) else None)
        elif name in splits:
            tables[name] = EncodedImages.load(parts["train"], name)
    train = tables["train"]
    for name, table in tables.items():
        if (table.palette, table.height, table.width) != (train.palette, train.height, train.width):
            raise ValueError(f"data.train and data.{name} differ in palette or size: encode them alike")
        if table.classes != train.classes:
            raise ValueError(f"data.train and data.{name} differ in their classes: encode both from one source")
    moving, classes = _moving(recipe.augmentation), _classes(tables)

    def images(name: str, rows: np.ndarray | None = None) -> IdImages:
        table = tables["train" if name == "set aside" else name]
        labels = None if classes is None else table.labels
        moved = moving if name == "train" else None
        return IdImages(table, labels, (table.height, table.width), rows, moved)

    if "validation" in tables:
        parts_of_run = images("train"), images("validation")
    else:
        kept, aside = _set_aside(len(train), recipe, seed)
        parts_of_run = images("train", kept), images("set aside", aside)
    return Data(
        name=recipe.train,
        train=parts_of_run[0],
        validation=parts_of_run[1],
        test=images("test") if "test" in tables else None,
        processor=train.processor,
        classes=classes,
    )


def _classes(tables: dict[str, EncodedImages]) -> list[str] | None:
    """Names of the classes, their numbers where they have none, or None if there are no labels."""
    train = tables["train"]
    if train.classes is not None or not len(train) or train.labels.min() < 0:
        return train.classes
    return [str(label) for label in range(max(int(table.labels.max()) for table in tables.values()) + 1)]


def _pictures(recipe: DataRecipe, parts: dict[str, str | None], seed: int, processor: ImageGPTImageProcessor) -> Data:
    still = "center-crop" if recipe.augmentation == "random-resized-crop" else "none"

    def open_part(place: str, split: str, augmentation: str) -> AugmentedImages:
        source = open_images(place, split=split if list_splits(place) else None)
        return AugmentedImages(source, processor, augmentation)

    train = open_part(recipe.train, "train", recipe.augmentation)
    splits, found = {canonical(split) for split in list_splits(recipe.train)}, {}
    for name in ("validation", "test"):
        place = parts[name] or (recipe.train if name in splits else None)
        if place is not None:
            found[name] = PictureImages(open_part(place, name, still))
    learnt = PictureImages(train)
    if "validation" not in found:
        kept, aside = _set_aside(len(train), recipe, seed)
        learnt = PictureImages(train, kept)
        found["validation"] = PictureImages(AugmentedImages(train.source, processor, still), aside)
    return Data(
        name=recipe.train,
        train=learnt,
        validation=found["validation"],
        test=found.get("test"),
        processor=processor,
        classes=train.classes,
    )


def _set_aside(num_images: int, recipe: DataRecipe, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to validate with, ascending."""
    held_out = max(1, round(num_images * recipe.validation_share))
    if held_out >= num_images:
        raise ValueError(
            f"data.validation_share is {recipe.validation_share} of {num_images} images, which leaves none to train: "
            "choose a smaller share, or give data.validation"
        )
    order = np.random.default_rng((seed, num_images)).permutation(num_images)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _moving(name: str) -> Augmentation | None:
    """An augmentation for ids."""
    if name == "none":
        return None
    augmentation = find_augmentation(name)
    if not augmentation.is_exact:
        raise ValueError(
            f"data.augmentation is {name!r}, and data.train has ids, whose colours cannot change: train on the "
            "pictures themselves, or choose flip or reflect-crop-flip"
        )
    return augmentation


def holds_ids(place: str) -> bool:
    """Whether images have ids of a palette already: digits, and what was encoded."""
    return place == _DIGITS or _is_encoded(place)


def _is_encoded(place: str) -> bool:
    folder = Path(place)
    return any(
        (path / MANIFEST).is_file() for path in (folder, *(folder / name for name in ("train", *saved_splits(folder))))
    )


def _encoded_splits(place: str) -> set[str | None]:
    """What the parts of an encoding mean; none if it is a single one."""
    return {canonical(split) for split in saved_splits(Path(place))}


def _palette(place: str) -> ColorPalette:
    path = Path(place)
    if path.exists():
        return ColorPalette.load(path)
    return ColorPalette.load(find_folder(place, weights=False))
