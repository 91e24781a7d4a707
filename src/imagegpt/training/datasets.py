"""The data of a run, in parts that have no image in common, with the record that tells them from other data.

    open_data       what a recipe names, for training
    data_to_score   what a user names, for a model that is there, in the parts that it was trained with

Parts are those of the source, where it has them; otherwise the split takes some of the training images, by a hash of
their pixels. An image that occurs in several parts counts in the last of train, validation and test only.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from imagegpt.checkpoints.loading import find_folder
from imagegpt.common import ranges
from imagegpt.data.broken_images import MAX_BROKEN
from imagegpt.data.identity import RECORD_FILE, DataRecord, ImagesRecord, PartRecord, class_changes, preprocessing_of
from imagegpt.data.splits import split_by_hash
from imagegpt.images.palette import ColorPalette
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.training.data import Data
from imagegpt.training.recipe import DataRecipe, SplitRecipe
from imagegpt.training.rng import random_subset
from imagegpt.training.source_images import (
    DIGITS,
    Opened,
    Rows,
    SourceImages,
    holds_ids,
    is_encoded,
    open_digits,
    open_encoded,
    open_pictures,
)


def open_data(recipe: DataRecipe, validation_images: int | None = None) -> Data:
    """Open what a recipe names.

    Args:
        recipe: names it.
        validation_images: at most so many are scored while training; None is all.
    Raises: ValueError or OSError, in one sentence, if something is missing or does not fit together.
    """
    opened, split = _opened(recipe), recipe.split
    if split.test and "test" in opened.sources:
        raise ValueError(
            f"data.split.test is {split.test}, and {recipe.train} has a test part already, or data.test is given: "
            "drop one of them"
        )
    by_hash = {"validation", *(["test"] if split.test else [])} - set(opened.sources)
    chosen, notes = _choose(recipe.train, opened.sources, split, by_hash)
    for part, (_, _, rows) in chosen.items():
        if not len(rows):
            raise _nothing_left(recipe, part, len(opened.sources[chosen[part][0]].hashes))
    return _data(recipe.train, opened, chosen, split, validation_images, is_own=True, notes=notes)


def data_to_score(
    place: str,
    model: str,
    processor: ImageGPTImageProcessor,
    record: DataRecord | None,
    *,
    max_broken: float = MAX_BROKEN,
) -> Data:
    """Open images that a model is to be tried on, in the parts that it was trained with if they are the same.

    Images in other places or in another form, encoded or not, are the same if their pixels are. Other images get the
    model's split, so that one that it was trained on is not held out, if it was held in by that split.

    Args:
        place: as `data.train` of a recipe.
        model: its name, for people.
        processor: of the model; pictures are encoded with it.
        record: of the data that it was trained with, None if that is not known.
        max_broken: the share of the images of a part that may be broken; they are left out.
    Raises: ValueError or OSError, in one sentence, if there are no such images, too many are broken, or their ids mean
        something else.
    """
    max_broken = ranges.BROKEN_SHARE.check("max_broken", max_broken)
    crop = "none" if record is None else record.preprocessing["crop"]
    opened = _opened_for_model(place, model, processor, crop, max_broken)
    split = SplitRecipe() if record is None else SplitRecipe(**record.split)
    by_hash = {"validation", *(["test"] if split.test else [])} - set(opened.sources)
    known = None if record is None else _known_sources(opened.sources, record)
    if record is None:
        notes = [
            f"{model} has no {RECORD_FILE}: which images it was trained on is not known, those of {place} may be "
            "among them; the default split and the preprocessing of its processor are assumed"
        ]
        chosen, more = _choose(place, opened.sources, split, by_hash)
    elif known is None:
        notes = [
            f"{place} is not the data that {model} was trained with, or has changed since: what is scored is a part "
            "of it by name or by the model's split"
        ]
        chosen, more = _choose(place, opened.sources, split, by_hash, fill=False)
    else:
        notes, opened = [], dataclasses.replace(opened, sources=known)
        by_hash = {name for name, part in record.parts.items() if part.by == "hash" and part.source in known}
        chosen, more = _choose(place, known, split, by_hash)
    chosen = {part: found for part, found in chosen.items() if len(found[2])}
    subset = None if record is None or record.validation_subset is None else record.validation_subset["num_images"]
    data = _data(place, opened, chosen, split, subset if known else None, is_own=known is not None, notes=notes + more)
    return data if record is None else dataclasses.replace(data, notes=[*data.notes, *_changes(data, model, record)])


def _opened(recipe: DataRecipe) -> Opened:
    if recipe.train == DIGITS:
        for name, default in (("validation", None), ("test", None), ("palette", None), ("side", None)):
            if getattr(recipe, name) != default:
                raise ValueError(
                    f"data.train is digits and data.{name} {getattr(recipe, name)!r}: digits have their own, leave it "
                    "out"
                )
        return open_digits(recipe.augmentation)
    places = {name: place for name in ("train", "validation", "test") if (place := getattr(recipe, name)) is not None}
    if is_encoded(recipe.train):
        for name in ("palette", "side"):
            if getattr(recipe, name) is not None:
                raise ValueError(
                    f"data.{name} is {getattr(recipe, name)!r}, but {recipe.train} is encoded already: leave it out"
                )
        return open_encoded(places, recipe.augmentation)
    if recipe.palette is None or recipe.side is None:
        missing = "palette" if recipe.palette is None else "side"
        raise ValueError(
            f"data.{missing} is missing, and {recipe.train} is not encoded: give data.palette and data.side, or encode "
            "it first (imagegpt encode)"
        )
    processor = ImageGPTImageProcessor(palette=_palette(recipe.palette), size=recipe.side)
    return open_pictures(places, processor, recipe.augmentation, recipe.max_broken)


def _opened_for_model(
    place: str, model: str, processor: ImageGPTImageProcessor, crop: str, max_broken: float
) -> Opened:
    if not holds_ids(place):
        return open_pictures({"train": place}, processor, crop, max_broken)
    opened = open_digits("none") if place == DIGITS else open_encoded({"train": place}, "none")
    ours, theirs = (math.prod(one.size.values()) for one in (processor, opened.processor))
    if ours != theirs:
        raise ValueError(
            f"the model {model} makes images of {ours} pixels, those of {place} have {theirs}: choose a model made for "
            "them"
        )
    if opened.processor.palette != processor.palette:
        raise ValueError(
            f"the model {model} has another palette than {place}, so their likelihoods mean different things: "
            "choose a model made for them"
        )
    return opened


_Chosen = dict[str, tuple[str, Literal["name", "hash"], Rows]]  # part -> source, how, rows of the source


def _choose(
    name: str, sources: Mapping[str, SourceImages], split: SplitRecipe, by_hash: set[str], *, fill: bool = True
) -> tuple[_Chosen, list[str]]:
    """Which images of which source each part has, and what is to be said of that."""
    chosen: _Chosen = {part: (part, "name", np.arange(len(source.hashes))) for part, source in sources.items()}
    if by_hash and "train" in sources:
        shares = {part: getattr(split, part) if part in by_hash else 0.0 for part in ("validation", "test")}
        rows = split_by_hash(sources["train"].hashes, seed=split.seed, **shares, fill=fill)
        chosen |= {part: ("train", "hash", found) for part, found in rows.items()}
    notes, seen = [], np.empty(0, np.uint64)
    for part in ("test", "validation", "train"):
        if part not in chosen:
            continue
        source, how, rows = chosen[part]
        hashes = sources[source].hashes[rows]
        twice = np.isin(hashes, seen, kind="sort")  # by a table, numpy 2.0 overflows on a single large hash
        if twice.any():
            others = "test" if part == "validation" else "validation or test"
            told = f"{twice.sum():,} images of the {part} part of {name} are in {others}, too"
            notes.append(f"{told}: left out of {part}")
        chosen[part] = source, how, rows[~twice]
        seen = np.concatenate([seen, hashes])
    return chosen, notes


def _data(
    name: str,
    opened: Opened,
    chosen: _Chosen,
    split: SplitRecipe,
    validation_images: int | None,
    *,
    is_own: bool,
    notes: Sequence[str],
) -> Data:
    sources, palette = opened.sources, opened.processor.palette
    assert palette is not None, "it was checked when the images were opened"
    parts, records, subset, told, untrained = {}, {}, None, None, []
    for part in ("train", "validation", "test"):
        if part in chosen:
            source, how, rows = chosen[part]
            hashes, labels = sources[source].hashes[rows], sources[source].labels
            if part == "train" and labels is not None:
                trained = set(np.unique(labels[rows]).tolist())
                untrained = [name for label, name in enumerate(opened.classes or ()) if label not in trained]
            parts[part] = sources[source].images(rows, varied=part == "train")
            content = ImagesRecord.of(hashes, None if labels is None else labels[rows])
            records[part] = PartRecord(source=source, by=how, content=content)
            if part == "validation" and validation_images is not None and validation_images < len(rows):
                subset = random_subset(len(rows), validation_images, split.seed)
                images = ImagesRecord.of(hashes[subset], None).images
                told = {"num_images": validation_images, "seed": split.seed, "images": images}
    record = DataRecord(
        sources={source: ImagesRecord.of(one.hashes, one.labels) for source, one in sources.items()},
        parts=records,
        classes=opened.classes,
        palette={"fingerprint": palette.fingerprint, "num_colors": palette.num_colors},
        preprocessing=preprocessing_of(opened.processor, opened.crop),
        split=dataclasses.asdict(split),
        validation_subset=told,
    )
    everything = [one.images(np.arange(len(one.hashes)), varied=False) for one in sources.values()]
    return Data(
        name=name,
        parts=parts,
        everything=everything,
        processor=opened.processor,
        classes=opened.classes,
        record=record,
        is_own=is_own,
        subset=subset,
        untrained_classes=untrained,
        broken=opened.broken,
        notes=notes,
    )


def _known_sources(sources: Mapping[str, SourceImages], record: DataRecord) -> dict[str, SourceImages] | None:
    """The sources by the names they had when a model was trained; None if one of them was not there."""
    known: dict[str, SourceImages] = {}
    for name, source in sources.items():
        images = ImagesRecord.of(source.hashes, None).images
        alike = [one for one, there in record.sources.items() if there.images == images and one not in known]
        if not alike:
            return None
        known[name if name in alike else alike[0]] = source
    return known


def _changes(data: Data, model: str, record: DataRecord) -> list[str]:
    """What keeps the numbers of a model on its own data from being those of its card."""
    told, now = [], data.record.preprocessing
    names = [name for name in now if now[name] != record.preprocessing.get(name)]
    if names:
        how = ", ".join(f"{name} {now[name]}, not {record.preprocessing.get(name)}" for name in names)
        told.append(f"{data.name} was encoded in another way than what {model} was validated with ({how})")
    if data.classes != record.classes and set(data.classes or ()) & set(record.classes or ()):
        changes = class_changes(record.classes, data.classes)
        told.append(f"{data.name} has other classes than {model} was trained with: {changes}")
    for name, part in data.record.parts.items() if data.is_own else ():
        there, here = record.parts.get(name), part.content
        if there is None or there.content.images != here.images:
            told.append(f"the {name} part has {here.num_images:,} images here, another one when {model} was made")
        elif there.content.order == here.order and here.labels and there.content.labels not in (None, here.labels):
            told.append(f"images of the {name} part have other labels than {model} was trained with")
    return told


def _nothing_left(recipe: DataRecipe, part: str, num_images: int) -> ValueError:
    split = recipe.split
    if part == "train":
        share = f"data.split.validation is {split.validation}" + (f" and test {split.test}" if split.test else "")
        return ValueError(
            f"{share} of {num_images} images, which leaves none to train: choose a smaller share, or give "
            "data.validation other images than data.train"
        )
    return ValueError(
        f"there is no image to {'validate' if part == 'validation' else part} in {recipe.train} that is not in another "
        f"part, too: give data.{part} other images"
    )


def _palette(place: str) -> ColorPalette:
    path = Path(place)
    if path.exists():
        return ColorPalette.load(path)
    return ColorPalette.load(find_folder(place, weights=False))
