"""Opening what a user calls data: digits, encoded images, or pictures, each with its pixel hashes and labels.

Axis letters: n images that can be read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt64

from imagegpt.data.augmentation import Augmentation, AugmentedImages, find_augmentation
from imagegpt.data.broken_images import BrokenImage, check_broken
from imagegpt.data.encoded import EncodedImages
from imagegpt.data.encoding_folder import MANIFEST
from imagegpt.data.hashing import pixel_hashes
from imagegpt.data.identity import class_changes
from imagegpt.data.sources.digits import load_digits
from imagegpt.data.sources.registry import DigitsSource, list_splits, open_images
from imagegpt.data.sources.tables import saved_splits
from imagegpt.data.splits import canonical
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.training.dataloader import Images
from imagegpt.training.images import ArrayTable, IdImages, PictureImages

DIGITS = "digits"

Rows = Int64[np.ndarray, " m"]


@dataclass(frozen=True, kw_only=True)
class SourceImages:
    """All images of a source, or of one of its parts, that can be read.

    Attributes:
        hashes: of their pictures, see `data.identity.pixel_hash`.
        labels: -1 where there is none; None if there are none.
        numbers: what the source calls them.
        make: images to read, by these numbers (None is all the source has); whether to augment them.
    """

    hashes: UInt64[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"] | None
    numbers: Int64[np.ndarray, " n"] | None
    make: Callable[[Rows | None, bool], Images]

    def images(self, rows: Rows, *, varied: bool) -> Images:
        """Some of them: 0 to n - 1, ascending."""
        if self.numbers is None:
            return self.make(None if len(rows) == len(self.hashes) else rows, varied)
        return self.make(self.numbers[rows], varied)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What was found.

    Attributes:
        sources: by the names of the parts: "train", "validation", "test"; all images are "train" if there are no parts.
        processor: of all of them.
        crop: what comes before the processor where pictures are not augmented, "center-crop" or "none".
        classes: their names, None if the images have no labels.
        broken: images that could not be read, which are left out.
    """

    sources: Mapping[str, SourceImages]
    processor: ImageGPTImageProcessor
    crop: str = "none"
    classes: list[str] | None
    broken: list[BrokenImage] = field(default_factory=list)


def holds_ids(place: str) -> bool:
    """Whether images have ids of a palette already: digits, and what was encoded."""
    return place == DIGITS or is_encoded(place)


def is_encoded(place: str) -> bool:
    """Whether a place is a folder that `imagegpt encode` made."""
    folder = Path(place)
    return any(
        (path / MANIFEST).is_file() for path in (folder, *(folder / name for name in ("train", *saved_splits(folder))))
    )


def open_digits(augmentation: str) -> Opened:
    """The digits of scikit-learn, in their own three parts."""
    data, moving = load_digits(), _moving(augmentation)
    processor = ImageGPTImageProcessor(palette=data.palette, size=data.side)
    sources = {}
    for name, part in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        labels, size = part.labels.numpy(), (data.side, data.side)
        sources[name] = SourceImages(
            hashes=pixel_hashes(DigitsSource(name)).hashes,
            labels=labels,
            numbers=None,
            make=partial(_ids, ArrayTable(part.ids.numpy()), labels, size, moving),
        )
    return Opened(sources=sources, processor=processor, classes=[str(digit) for digit in range(10)])


def open_encoded(places: Mapping[str, str], augmentation: str) -> Opened:
    """Encoded images.

    Args:
        places: of the parts; "train" alone may hold other parts.
        augmentation: of those to train on.
    """
    train_place, tables = places["train"], {}
    found = {canonical(split) for split in saved_splits(Path(train_place))}
    for name in ("train", "validation", "test"):
        place = places.get(name, train_place if name in found else None)
        if place is not None:
            tables[name] = EncodedImages.load(place, name if saved_splits(Path(place)) else None)
    train = tables["train"]
    for name, table in tables.items():
        if (table.palette, table.height, table.width) != (train.palette, train.height, train.width):
            raise ValueError(f"data.train and data.{name} differ in palette or size: encode them alike")
        if table.classes != train.classes:
            raise ValueError(f"data.train and data.{name} differ in their classes: encode both from one source")
    moving, classes = _moving(augmentation), _classes(tables)
    sources = {}
    for name, table in tables.items():
        labels = None if classes is None else table.labels
        make = partial(_ids, table, labels, (table.height, table.width), moving)
        sources[name] = SourceImages(hashes=table.hashes, labels=labels, numbers=None, make=make)
    return Opened(sources=sources, processor=train.processor, classes=classes)


def open_pictures(
    places: Mapping[str, str], processor: ImageGPTImageProcessor, augmentation: str, max_broken: float
) -> Opened:
    """Pictures that are not encoded; each is read once here, if its hash is not known yet.

    Args:
        places: as in `open_encoded`.
        processor: encodes them.
        augmentation: of those to train on.
        max_broken: the share of the pictures of a part that may be broken.
    """
    train_place, sources, broken = places["train"], {}, []
    found, classes, crop = {canonical(split) for split in list_splits(train_place)}, None, "none"
    for name in ("train", "validation", "test"):
        place = places.get(name, train_place if name in found else None)
        if place is None:
            continue
        source = open_images(place, split=name if list_splits(place) else None)
        hashed = pixel_hashes(source)
        numbers = np.flatnonzero(hashed.hashes)
        check_broken(hashed.broken, len(source), f"images of {place}", max_broken)
        broken += hashed.broken
        pictures = AugmentedImages(source, processor, augmentation)
        if name == "train":
            classes, crop = source.classes, pictures.still
        elif source.classes is not None and classes is not None and source.classes != classes:
            raise ValueError(
                f"data.train and data.{name} differ in their classes ({class_changes(classes, source.classes)}): give "
                "folders with the same classes"
            )
        sources[name] = SourceImages(
            hashes=hashed.hashes[numbers],
            labels=None if source.classes is None else source.labels[numbers],
            numbers=None if len(numbers) == len(source) else numbers,
            make=partial(_pictures, pictures),
        )
    return Opened(sources=sources, processor=processor, crop=crop, classes=classes, broken=broken)


def _ids(
    table: ArrayTable | EncodedImages,
    labels: Int64[np.ndarray, " n"] | None,
    size: tuple[int, int],
    moving: Augmentation | None,
    rows: Rows | None,
    varied: bool,
) -> IdImages:
    return IdImages(table, labels, size, rows, moving if varied else None)


def _pictures(pictures: AugmentedImages, rows: Rows | None, varied: bool) -> PictureImages:
    return PictureImages(pictures, rows, varied)


def _classes(tables: Mapping[str, EncodedImages]) -> list[str] | None:
    """Names of the classes, their numbers where they have none, or None if there are no labels."""
    train = tables["train"]
    if train.classes is not None or not len(train) or train.labels.min() < 0:
        return train.classes
    return [str(label) for label in range(max(int(table.labels.max()) for table in tables.values()) + 1)]


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
