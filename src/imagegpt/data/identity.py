"""The identity of a data set: hashes of its images, and the record of them that is saved with a model as `data.json`.

    pixel_hash     of one image: its pixels as RGB, upright, in their original size
    ImagesRecord   of several images: their hashes as a set and in order, and their labels
    DataRecord     of a run: its sources and splits, palette and preprocessing

A record holds no paths and no pixels, so it can be published with the model. Two runs have the same data if their
records are equal, whether they read images or the ids that were encoded from them.

Axis letters: n images, H height, W width.
"""

import dataclasses
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from jaxtyping import Int64, UInt8, UInt64
from PIL import Image

from imagegpt.common import ranges
from imagegpt.files.atomic import atomic_write
from imagegpt.files.versions import FORMAT_KEY, read_versioned_json
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.images.reading import read_image

RECORD_FILE = "data.json"
DATA_FORMAT = 2  # 1 called the splits parts
HASH_BACKGROUND = (255, 255, 255)  # behind transparent pixels

_KIND = "data of an imagegpt model"
_CROPS = ("none", "center-crop")
_SHOWN = 3  # classes, in a sentence


def pixel_hash(image: Any) -> int:
    """Hash the pixels of an image: 1 to 2^64 - 1, the same for images with the same pixels.

    Args:
        image: anything `ImageGPTImageProcessor` takes; transparent images are composited on white.
    Raises: ValueError or FileNotFoundError if it cannot be read.
    """
    return hash_of_rgb(read_image(image, HASH_BACKGROUND))


def hash_of_rgb(rgb: Image.Image | UInt8[np.ndarray, "h w 3"]) -> int:
    """Compute the `pixel_hash` of an image that is decoded already, composited on `HASH_BACKGROUND`."""
    pixels = np.ascontiguousarray(rgb)
    digest = hashlib.blake2b(struct.pack("<2q", *pixels.shape[:2]), digest_size=8)
    digest.update(pixels.data)
    return int.from_bytes(digest.digest(), "little") or 1


@dataclass(frozen=True, kw_only=True)
class ImagesRecord:
    """Fingerprints of several images.

    Attributes:
        num_images: how many.
        images: of their pixels, in any order.
        order: of their pixels, in this order.
        labels: of their labels, in this order; None without labels.
    """

    num_images: int
    images: str
    order: str
    labels: str | None

    @classmethod
    def of(cls, hashes: UInt64[np.ndarray, " n"], labels: Int64[np.ndarray, " n"] | None) -> Self:
        """Record images with these pixel hashes and labels."""
        return cls(
            num_images=len(hashes),
            images=_fingerprint(np.sort(hashes).astype("<u8")),
            order=_fingerprint(hashes.astype("<u8")),
            labels=None if labels is None else _fingerprint(labels.astype("<i8")),
        )


@dataclass(frozen=True, kw_only=True)
class SplitRecord:
    """The train, validation or test split of a run.

    Attributes:
        source: the key in `DataRecord.sources` of the images it was taken from.
        by: "name" if it is all of that source, except for images that a later split has, too; "hash" if these images
            were held out by hash, or are what that left.
        content: its images.
    """

    source: str
    by: Literal["name", "hash"]
    content: ImagesRecord


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """Everything that determines which ids a model was trained on, and which not; the contents of `data.json`.

    Attributes:
        sources: the images that were given, by the name of their split; all are in "train" if there are no splits.
        splits: "train", "validation" and perhaps "test"; some may be missing when a model is evaluated on other data.
        classes: names of the labels; None without labels.
        palette: `fingerprint` and `num_colors`.
        preprocessing: of images that are not augmented: `size`, `resize_mode`, `resample`, `background` of the
            processor, and `crop`, "center-crop" or "none".
        hash_split: the `seed` of the split by hash, and the fractions `validation` and `test`.
        validation_subset: the validation images that were scored during training: `num_images`, `seed`, and `images` as
            in `ImagesRecord`; None for all of them.
    """

    sources: Mapping[str, ImagesRecord]
    splits: Mapping[str, SplitRecord]
    classes: Sequence[str] | None
    palette: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    hash_split: Mapping[str, Any]
    validation_subset: Mapping[str, Any] | None

    def write(self, folder: Path) -> None:
        """Write `data.json`."""
        fields = {"kind": _KIND, FORMAT_KEY: DATA_FORMAT, **dataclasses.asdict(self)}
        atomic_write(folder / RECORD_FILE, (json.dumps(fields, indent=2) + "\n").encode(), "the record of the data")

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read the record in a folder; None if there is none.

        Raises: ValueError if it is damaged or of another version.
        """
        path, remedy = folder / RECORD_FILE, "get it again, or move it away"
        try:
            record = read_versioned_json(path, cls, DATA_FORMAT, kind=_KIND, remedy=remedy)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            record._check()
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): {remedy}") from error
        return record

    def _check(self) -> None:
        """Check the values of the fields.

        Raises: ValueError, which names the field, if one is impossible.
        """
        ranges.COLORS.check("palette.num_colors", self.palette.get("num_colors"))
        ranges.TRAINING_SEED.check("hash_split.seed", self.hash_split.get("seed"))
        for name in ("validation", "test"):
            ranges.FRACTION.check(f"hash_split.{name}", self.hash_split.get(name))
        if self.preprocessing.get("crop") not in _CROPS:
            raise ValueError(f"preprocessing.crop is none of {', '.join(_CROPS)}")
        for name, split in self.splits.items():
            if split.source not in self.sources:
                raise ValueError(f"splits.{name}.source is none of the sources")
        if self.validation_subset is not None:
            ranges.DATASET_SIZE.check("validation_subset.num_images", self.validation_subset.get("num_images"))

    def differences(self, now: "DataRecord") -> list[str]:
        """Describe how other data differ from these."""
        found = []
        if self.palette != now.palette:
            found.append(f"the palette ({self.palette['fingerprint']}, not {now.palette['fingerprint']})")
        for section, words in (("preprocessing", "the preprocessing's"), ("hash_split", "the split's")):
            old, new = getattr(self, section), getattr(now, section)
            names = [name for name in new if old.get(name) != new[name]]
            found += [f"{words} {name} ({_format(old.get(name))}, not {_format(new[name])})" for name in names]
        if self.classes != now.classes:
            found.append(f"the classes ({class_changes(self.classes, now.classes)})")
        for name in dict.fromkeys((*self.splits, *now.splits)):
            old, new = self.splits.get(name), now.splits.get(name)
            if old is None or new is None:
                found.append(f"there is {'no' if new is None else 'a'} {name} split")
            else:
                found += _image_differences(name, old.content, new.content)
        if not found and self != now:
            found.append("the source images")
        return found


def class_changes(old: Sequence[str] | None, new: Sequence[str] | None) -> str:
    """Describe how classes differ from those of before."""
    if old is None or new is None:
        return "there are none" if new is None else "there were none"
    found = []
    for names, others, what in ((old, new, "missing"), (new, old, "new")):
        if changed := [name for name in names if name not in set(others)]:
            more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
            found.append(f"{', '.join(changed[:_SHOWN])}{more} {'is' if len(changed) == 1 else 'are'} {what}")
    return "; ".join(found) or "their order has changed"


def processor_settings(processor: ImageGPTImageProcessor) -> dict[str, Any]:
    """Return the settings of a processor that determine the ids of an image, apart from the palette."""
    options = processor.to_dict()
    return {name: options[name] for name in ("size", "resize_mode", "resample", "background")}


def _image_differences(split: str, old: ImagesRecord, new: ImagesRecord) -> list[str]:
    if old.num_images != new.num_images:
        return [f"the images of the {split} split ({old.num_images:,}, not {new.num_images:,})"]
    if old.images != new.images:
        return [f"the images of the {split} split"]
    if old.order != new.order:
        return [f"the order of the images of the {split} split"]
    return [f"the labels of the {split} split"] if old.labels != new.labels else []


def _fingerprint(values: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=8).hexdigest()


def _format(value: Any) -> str:
    if isinstance(value, dict) and set(value) == {"height", "width"}:
        return f"{value['height']}x{value['width']}"
    return str(value)
