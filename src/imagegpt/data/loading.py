"""Opening data: from a recipe, or from a location that a trained model is evaluated on, to `DataSplits`.

    open_data             the data that a recipe names, for training
    open_data_for_model   the data that a user names, for a trained model, split as it was trained

Splits are those of the source, where it has them; otherwise training images are held out by a hash of their pixels. An
image that occurs in several splits counts only in the last of train, validation and test.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int64

from imagegpt.common import ranges
from imagegpt.data.broken_images import MAX_BROKEN
from imagegpt.data.data_splits import DataSplits
from imagegpt.data.datasets import Subset, TokenDataset
from imagegpt.data.identity import RECORD_FILE, DataRecord, ImagesRecord, SplitRecord, class_changes, processor_settings
from imagegpt.data.opened_data import OpenedData, open_for_model, open_for_training
from imagegpt.data.palettes import checked_palette
from imagegpt.data.recipe import DataRecipe, SplitRecipe
from imagegpt.data.shuffling import random_subset
from imagegpt.data.splits import split_by_hash
from imagegpt.images.processor import ImageGPTImageProcessor

_Assignment = dict[str, "_Assigned"]


def open_data(recipe: DataRecipe, validation_images: int | None = None) -> DataSplits:
    """Open the data that a recipe names.

    Args:
        recipe: names them.
        validation_images: how many validation images to score during training, at most; None for all.
    Raises: ValueError or OSError, in one sentence, if something is missing or does not fit together.
    """
    opened, split = open_for_training(recipe), recipe.split
    if split.test and "test" in opened.datasets:
        raise ValueError(
            f"data.split.test is {split.test}, and {recipe.train} has a test split already, or data.test is given: "
            "drop one of them"
        )
    assignment, notes = _assign(recipe.train, opened.datasets, split, _missing_splits(opened.datasets, split))
    for name, assigned in assignment.items():
        if not len(assigned.indices):
            raise _empty_split_error(recipe, name, len(opened.datasets[assigned.source]))
    return _build(recipe.train, opened, assignment, split, validation_images, is_training_data=True, notes=notes)


def open_data_for_model(
    location: str,
    model: str,
    processor: ImageGPTImageProcessor,
    record: DataRecord | None,
    *,
    max_broken: float = MAX_BROKEN,
) -> DataSplits:
    """Open images to evaluate a model on, split as its training data were if they are the same images.

    Images are the same if their pixels are, wherever they are and whether they are encoded or not. Other images are
    split by the model's hash, so that images it was trained on are not held out.

    Args:
        location: as `data.train` of a recipe.
        model: its name, for messages.
        processor: of the model, encodes the images.
        record: of the data it was trained on; None if unknown.
        max_broken: the largest fraction of a split's images that may be broken; broken images are skipped.
    Raises: ValueError or OSError, in one sentence, if there are no such images, too many are broken, or their palette
        or size is not the model's.
    """
    max_broken = ranges.BROKEN_FRACTION.check("max_broken", max_broken)
    crop = "none" if record is None else record.preprocessing["crop"]
    opened = open_for_model(location, model, processor, crop, max_broken)
    split = SplitRecipe() if record is None else SplitRecipe(**record.hash_split)
    known = None if record is None else _match_sources(opened.datasets, record)
    if record is None or known is None:
        by_hash, subset = _missing_splits(opened.datasets, split), None
        notes = [_note_on_other_data(location, model, record)]
    else:
        by_hash = {name for name, one in record.splits.items() if one.by == "hash" and one.source in known}
        opened, subset, notes = dataclasses.replace(opened, datasets=known), record.validation_subset, []
    fill, monitored = record is None or known is not None, None if subset is None else subset["num_images"]
    assignment, repeated = _assign(location, opened.datasets, split, by_hash, fill=fill)
    present = {name: assigned for name, assigned in assignment.items() if len(assigned.indices)}
    data = _build(
        location, opened, present, split, monitored, is_training_data=known is not None, notes=notes + repeated
    )
    return data if record is None else dataclasses.replace(data, notes=[*data.notes, *_changes(data, model, record)])


def _note_on_other_data(location: str, model: str, record: DataRecord | None) -> str:
    if record is None:
        return (
            f"{model} has no {RECORD_FILE}: it may have been trained on images of {location}; the default split and "
            "the preprocessing of its processor are assumed"
        )
    return (
        f"{location} is not the data that {model} was trained on, or has changed since: it is split by name or by "
        "the model's hash"
    )


@dataclasses.dataclass(frozen=True)
class _Assigned:
    """The images of a split: some of a source's, assigned by the name of its split or by hash."""

    source: str
    by: Literal["name", "hash"]
    indices: Int64[np.ndarray, " m"]


def _missing_splits(datasets: Mapping[str, TokenDataset], split: SplitRecipe) -> set[str]:
    """The splits to make by hash."""
    return {"validation", *(["test"] if split.test else [])} - set(datasets)


def _assign(
    name: str, datasets: Mapping[str, TokenDataset], split: SplitRecipe, by_hash: set[str], *, fill: bool = True
) -> tuple[_Assignment, list[str]]:
    """Assign the images of the sources to splits; also return notes on images that occur in several."""
    assignment = {source: _Assigned(source, "name", np.arange(len(dataset))) for source, dataset in datasets.items()}
    if by_hash and "train" in datasets:
        fractions = {one: getattr(split, one) if one in by_hash else 0.0 for one in ("validation", "test")}
        found = split_by_hash(datasets["train"].hashes, seed=split.seed, **fractions, fill=fill)
        assignment |= {one: _Assigned("train", "hash", indices) for one, indices in found.items()}
    notes, seen = [], np.empty(0, np.uint64)
    for one in ("test", "validation", "train"):
        if one not in assignment:
            continue
        assigned = assignment[one]
        hashes = datasets[assigned.source].hashes[assigned.indices]
        repeated = np.isin(hashes, seen, kind="sort")  # by a table, numpy 2.0 overflows on a single large hash
        if repeated.any():
            others = "test" if one == "validation" else "validation or test"
            notes.append(f"{repeated.sum():,} images of {name} are in {one} and in {others}: removed from {one}")
        assignment[one] = dataclasses.replace(assigned, indices=assigned.indices[~repeated])
        seen = np.concatenate([seen, hashes])
    return assignment, notes


def _build(
    name: str,
    opened: OpenedData,
    assignment: _Assignment,
    split: SplitRecipe,
    validation_images: int | None,
    *,
    is_training_data: bool,
    notes: Sequence[str],
) -> DataSplits:
    splits, records, validation_indices, subset_record = {}, {}, None, None
    for one in ("train", "validation", "test"):
        if one not in assignment:
            continue
        assigned = assignment[one]
        source, indices = opened.datasets[assigned.source], assigned.indices
        images = source if len(indices) == len(source) else Subset(source, indices)
        splits[one] = images if one == "train" else images.without_augmentation()
        hashes = images.hashes
        records[one] = SplitRecord(
            source=assigned.source, by=assigned.by, content=ImagesRecord.of(hashes, images.labels)
        )
        if one == "validation" and validation_images is not None and validation_images < len(indices):
            validation_indices = random_subset(len(indices), validation_images, split.seed)
            fingerprint = ImagesRecord.of(hashes[validation_indices], None).images
            subset_record = {"num_images": validation_images, "seed": split.seed, "images": fingerprint}
    palette = checked_palette(opened.processor)
    record = DataRecord(
        sources={source: ImagesRecord.of(one.hashes, one.labels) for source, one in opened.datasets.items()},
        splits=records,
        classes=opened.classes,
        palette={"fingerprint": palette.fingerprint, "num_colors": palette.num_colors},
        preprocessing={**processor_settings(opened.processor), "crop": opened.crop},
        hash_split=dataclasses.asdict(split),
        validation_subset=subset_record,
    )
    return DataSplits(
        name=name,
        splits=splits,
        sources=[dataset.without_augmentation() for dataset in opened.datasets.values()],
        processor=opened.processor,
        classes=opened.classes,
        record=record,
        is_training_data=is_training_data,
        validation_indices=validation_indices,
        untrained_classes=_untrained_classes(opened.classes, splits.get("train")),
        broken=opened.broken,
        notes=notes,
    )


def _untrained_classes(classes: Sequence[str] | None, train: TokenDataset | None) -> list[str]:
    labels = None if train is None else train.labels
    if labels is None:
        return []
    trained = set(np.unique(labels).tolist())
    return [name for label, name in enumerate(classes or ()) if label not in trained]


def _match_sources(datasets: Mapping[str, TokenDataset], record: DataRecord) -> dict[str, TokenDataset] | None:
    """Find which sources of a model's training data these are; None if one of them is not among them."""
    known: dict[str, TokenDataset] = {}
    for name, dataset in datasets.items():
        images = ImagesRecord.of(dataset.hashes, None).images
        alike = [one for one, recorded in record.sources.items() if recorded.images == images and one not in known]
        if not alike:
            return None
        known[name if name in alike else alike[0]] = dataset
    return known


def _changes(data: DataSplits, model: str, record: DataRecord) -> list[str]:
    """Say why the scores on these data may differ from those on the model's card."""
    notes, now = [], data.record.preprocessing
    names = [name for name in now if now[name] != record.preprocessing.get(name)]
    if names:
        how = ", ".join(f"{name} {now[name]}, not {record.preprocessing.get(name)}" for name in names)
        notes.append(f"{data.name} is preprocessed differently from the validation images of {model} ({how})")
    if data.classes != record.classes and set(data.classes or ()) & set(record.classes or ()):
        changes = class_changes(record.classes, data.classes)
        notes.append(f"{data.name} has other classes than the training data of {model}: {changes}")
    for name, split in data.record.splits.items() if data.is_training_data else ():
        old, new = record.splits.get(name), split.content
        if old is None or old.content.images != new.images:
            notes.append(f"the {name} split has {new.num_images:,} images, not those of the training of {model}")
        elif old.content.order == new.order and new.labels and old.content.labels not in (None, new.labels):
            notes.append(f"images of the {name} split have other labels than in the training of {model}")
    return notes


def _empty_split_error(recipe: DataRecipe, name: str, num_images: int) -> ValueError:
    split = recipe.split
    if name == "train":
        fractions = f"data.split.validation is {split.validation}" + (f" and test {split.test}" if split.test else "")
        return ValueError(
            f"{fractions} of {num_images} images, which leaves none to train on: choose a smaller fraction, or give "
            "data.validation other images than data.train"
        )
    return ValueError(
        f"the {name} split of {recipe.train} has no image that is not in another split: give data.{name} other images"
    )
