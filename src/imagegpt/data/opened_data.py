"""Opening the data sets behind a location: encoded images, or a source of images with a processor that encodes them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from imagegpt.data.augmentation import find_augmentation
from imagegpt.data.broken_images import BrokenImage, check_broken
from imagegpt.data.datasets import ImageDataset, Subset, TokenDataset
from imagegpt.data.encoded import EncodedDataset, numbered_classes
from imagegpt.data.encoding_folder import is_encoded
from imagegpt.data.identity import class_changes
from imagegpt.data.palettes import load_palette
from imagegpt.data.recipe import DataRecipe
from imagegpt.data.sources.registry import list_splits, open_images, source_processor
from imagegpt.data.sources.saved import saved_splits
from imagegpt.data.splits import canonical
from imagegpt.images.processor import ImageGPTImageProcessor

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class OpenedData:
    """Data sets of one palette and one size.

    Attributes:
        datasets: without broken images, by "train", "validation" and "test"; all are "train" if there are no splits.
        processor: encodes their images.
        crop: the crop before the processor in evaluation: "center-crop" or "none".
        classes: the names of the labels; None without labels.
        broken: images that cannot be read.
    """

    datasets: Mapping[str, TokenDataset]
    processor: ImageGPTImageProcessor
    crop: str = "none"
    classes: list[str] | None
    broken: list[BrokenImage] = field(default_factory=list)


def has_own_palette(location: str) -> bool:
    """Whether images come with palette and size: they are encoded, or their source prescribes a processor."""
    return is_encoded(Path(location)) or source_processor(location) is not None


def open_for_training(recipe: DataRecipe) -> OpenedData:
    """Open the data sets that a recipe names.

    Raises: ValueError or OSError, in one sentence, if something is missing or does not fit together.
    """
    locations = {name: location for name in _SPLITS if (location := getattr(recipe, name)) is not None}
    encoded = is_encoded(Path(recipe.train))
    own = None if encoded else source_processor(recipe.train)
    if encoded or own is not None:
        for name in ("palette", "side"):
            if getattr(recipe, name) is not None:
                reason = "is encoded already" if encoded else "has its own"
                raise ValueError(f"data.{name} is {getattr(recipe, name)!r}, but {recipe.train} {reason}: leave it out")
    if encoded:
        return _open_encoded(locations, recipe.augmentation)
    if own is not None:
        if not find_augmentation(recipe.augmentation).applies_to_ids:
            raise ValueError(
                f"data.augmentation is {recipe.augmentation!r}, which makes colours that the palette of data.train = "
                f"{recipe.train} lacks: choose flip or reflect-crop-flip"
            )
        return _open_images(locations, own, recipe.augmentation, recipe.max_broken)
    if recipe.palette is None or recipe.side is None:
        missing = "palette" if recipe.palette is None else "side"
        raise ValueError(
            f"data.{missing} is missing, and {recipe.train} is not encoded: give data.palette and data.side, or encode "
            "it first (imagegpt encode)"
        )
    processor = ImageGPTImageProcessor(palette=load_palette(recipe.palette), size=recipe.side)
    return _open_images(locations, processor, recipe.augmentation, recipe.max_broken)


def open_for_model(
    location: str, model: str, processor: ImageGPTImageProcessor, crop: str, max_broken: float
) -> OpenedData:
    """Open the data sets behind a location for a model with that processor; see `open_data_for_model`."""
    locations = {"train": location}
    if is_encoded(Path(location)):
        opened = _open_encoded(locations, "none")
    elif (own := source_processor(location)) is not None:
        opened = _open_images(locations, own, "none", max_broken)
    else:
        return _open_images(locations, processor, crop, max_broken)
    ours, theirs = (math.prod(one.size.values()) for one in (processor, opened.processor))
    if ours != theirs:
        raise ValueError(
            f"the model {model} makes images of {ours} pixels, those of {location} have {theirs}: choose a model made "
            "for them"
        )
    if opened.processor.palette != processor.palette:
        raise ValueError(
            f"the model {model} has another palette than {location}, so their likelihoods are not comparable: choose a "
            "model made for them"
        )
    return opened


def _data_sets(
    locations: Mapping[str, str], list_splits: Callable[[str], Sequence[str]]
) -> Iterator[tuple[str, str, str | None]]:
    """Yield name, location and split of each data set; the location of "train" may hold the other splits, too."""
    available = {canonical(split) for split in list_splits(locations["train"])}
    for name in _SPLITS:
        location = locations.get(name, locations["train"] if name in available else None)
        if location is not None:
            yield name, location, name if list_splits(location) else None


def _open_encoded(locations: Mapping[str, str], augmentation: str) -> OpenedData:
    """Open encoded images, by the name of their split."""
    found = _data_sets(locations, lambda location: saved_splits(Path(location)))
    datasets = {name: EncodedDataset(location, split, augmentation) for name, location, split in found}
    train = datasets["train"]
    for name, dataset in datasets.items():
        if (dataset.palette, dataset.size) != (train.palette, train.size):
            raise ValueError(f"data.train and data.{name} differ in palette or size: encode them alike")
        if dataset.class_names != train.class_names:
            raise ValueError(f"data.train and data.{name} differ in their classes: encode both from one source")
    classes = train.classes
    if train.class_names is None and classes is not None:  # labels without names: the highest may be in any split
        classes = numbered_classes(max(dataset.label_range[1] for dataset in datasets.values()))
    for dataset in datasets.values():
        dataset.classes = classes
    return OpenedData(datasets=datasets, processor=train.processor, classes=classes)


def _open_images(
    locations: Mapping[str, str], processor: ImageGPTImageProcessor, augmentation: str, max_broken: float
) -> OpenedData:
    """Open sources of images; each image is read once, unless its hash is in the cache.

    Args:
        locations: by the name of the split.
        processor: encodes the images.
        augmentation: of the training images.
        max_broken: the largest fraction of a split's images that may be broken.
    """
    datasets: dict[str, ImageDataset] = {}
    readable: dict[str, TokenDataset] = {}
    for name, location, split in _data_sets(locations, list_splits):
        source = open_images(location, split=split)
        if source.is_sequential:
            raise ValueError(
                f"{location} is a stream, which can only be read in order: encode it first (imagegpt encode)"
            )
        dataset = datasets[name] = ImageDataset(source, processor, augmentation)
        check_broken(dataset.broken, len(source), f"images of {location}", max_broken)
        readable[name] = Subset(dataset, np.flatnonzero(dataset.hashes)) if dataset.broken else dataset
        classes = datasets["train"].classes
        if dataset.classes is not None and classes is not None and dataset.classes != classes:
            raise ValueError(
                f"data.train and data.{name} differ in their classes ({class_changes(classes, dataset.classes)}): give "
                "folders with the same classes"
            )
    train = datasets["train"]
    return OpenedData(
        datasets=readable,
        processor=processor,
        crop=train.augmentation.evaluation,
        classes=train.classes,
        broken=[one for dataset in datasets.values() for one in dataset.broken],
    )
