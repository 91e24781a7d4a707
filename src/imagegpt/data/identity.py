"""What a data set is: hashes of its pictures, and the record of them that lies beside a trained model as `data.json`.

    pixel_hash     of one picture: of its pixels as RGB, upright, in the size it came in
    ImagesRecord   of several: of the set of these hashes, of their order, and of the labels
    DataRecord     of a run: its sources and parts, palette, preprocessing and split

A record holds no paths and no pixels: a model may be given away with it. Two runs have the same data if nothing in
their records differs, whether they read pictures or ids that were made of them.

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
from imagegpt.files.versions import FORMAT_KEY, read_own
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.images.reading import read_image

RECORD_FILE = "data.json"
DATA_FORMAT = 1

_KIND = "data of an imagegpt model"
_CROPS = ("none", "center-crop")
_WHITE = (255, 255, 255)
_SHOWN = 3  # classes, in a sentence


def pixel_hash(image: Any) -> int:
    """A hash of a picture, 1 to 2^64 - 1, that two pictures share if their pixels are the same.

    Args:
        image: of any kind that `ImageGPTImageProcessor` takes; transparent ones are laid on white.
    Raises: ValueError or FileNotFoundError if it cannot be read.
    """
    return hash_of_rgb(read_image(image, _WHITE))


def hash_of_rgb(rgb: Image.Image | UInt8[np.ndarray, "h w 3"]) -> int:
    """`pixel_hash` of an RGB picture that was read already."""
    pixels = np.ascontiguousarray(rgb)
    digest = hashlib.blake2b(struct.pack("<2q", *pixels.shape[:2]), digest_size=8)
    digest.update(pixels.data)
    return int.from_bytes(digest.digest(), "little") or 1


def hash_of_picture(image: Any, rgb: Image.Image | UInt8[np.ndarray, "h w 3"], background: tuple[int, int, int]) -> int:
    """`pixel_hash` of a picture that was read already, laid on a background: it must not depend on the background."""
    return hash_of_rgb(rgb) if background == _WHITE else pixel_hash(image)


@dataclass(frozen=True, kw_only=True)
class ImagesRecord:
    """Some images.

    Attributes:
        num_images: how many.
        images: a fingerprint of their pixels, whatever their order.
        order: a fingerprint of their pixels in this order.
        labels: a fingerprint of their labels in this order, None if they have none.
    """

    num_images: int
    images: str
    order: str
    labels: str | None

    @classmethod
    def of(cls, hashes: UInt64[np.ndarray, " n"], labels: Int64[np.ndarray, " n"] | None) -> Self:
        """The record of images with such pixel hashes and labels."""
        return cls(
            num_images=len(hashes),
            images=_fingerprint(np.sort(hashes).astype("<u8")),
            order=_fingerprint(hashes.astype("<u8")),
            labels=None if labels is None else _fingerprint(labels.astype("<i8")),
        )


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """A part of the data: what is trained on, what validates, what tests.

    Attributes:
        source: the key in `DataRecord.sources` of the images it was taken from.
        by: "name" if it is all of that source, except for images that occur in a later part, too; "hash" if the split
            took it from there.
        content: its images.
    """

    source: str
    by: Literal["name", "hash"]
    content: ImagesRecord


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """All that decides which ids a model has seen, and which it has not; the contents of `data.json`.

    Attributes:
        sources: the images that were given, by the name of their part, all of them in "train" if they had no parts.
        parts: "train", "validation" and perhaps "test"; of data that a model is tried on some may be missing.
        classes: names of the labels, None if there are none.
        palette: `fingerprint` and `num_colors`.
        preprocessing: of images that are not augmented: `size`, `resize_mode`, `resample`, `background` of the
            processor, and `crop`, "center-crop" or "none".
        split: `seed`, and the shares `validation` and `test`.
        validation_subset: those images of validation that were scored while training, None if it was all of them:
            `num_images`, `seed`, and `images` as in `ImagesRecord`.
    """

    sources: Mapping[str, ImagesRecord]
    parts: Mapping[str, PartRecord]
    classes: Sequence[str] | None
    palette: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    split: Mapping[str, Any]
    validation_subset: Mapping[str, Any] | None

    def write(self, folder: Path) -> None:
        """Write `data.json`."""
        fields = {"kind": _KIND, FORMAT_KEY: DATA_FORMAT, **dataclasses.asdict(self)}
        atomic_write(folder / RECORD_FILE, (json.dumps(fields, indent=2) + "\n").encode(), "the record of the data")

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The record in a folder, None if there is none.

        Raises: ValueError if it is damaged or of another version.
        """
        path, remedy = folder / RECORD_FILE, "get it again, or move it away"
        try:
            record = read_own(path, cls, DATA_FORMAT, kind=_KIND, remedy=remedy)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            record._check()
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): {remedy}") from error
        return record

    def _check(self) -> None:
        """See that the fields can be as they are.

        Raises: ValueError, which names the field, if not.
        """
        ranges.COLORS.check("palette.num_colors", self.palette.get("num_colors"))
        ranges.TRAINING_SEED.check("split.seed", self.split.get("seed"))
        for name in ("validation", "test"):
            ranges.SHARE.check(f"split.{name}", self.split.get(name))
        if self.preprocessing.get("crop") not in _CROPS:
            raise ValueError(f"preprocessing.crop is none of {', '.join(_CROPS)}")
        for name, part in self.parts.items():
            if part.source not in self.sources:
                raise ValueError(f"parts.{name}.source is none of the sources")
        if self.validation_subset is not None:
            ranges.SOME_IMAGES.check("validation_subset.num_images", self.validation_subset.get("num_images"))

    def differences(self, now: "DataRecord") -> list[str]:
        """In what other data differ from these, in words."""
        told = []
        if self.palette != now.palette:
            told.append(f"the palette ({self.palette['fingerprint']}, not {now.palette['fingerprint']})")
        for section in ("preprocessing", "split"):
            old, new = getattr(self, section), getattr(now, section)
            names = [name for name in new if old.get(name) != new[name]]
            told += [f"the {section}'s {name} ({_shown(old.get(name))}, not {_shown(new[name])})" for name in names]
        if self.classes != now.classes:
            told.append(f"the classes ({class_changes(self.classes, now.classes)})")
        for name in dict.fromkeys((*self.parts, *now.parts)):
            old, new = self.parts.get(name), now.parts.get(name)
            if old is None or new is None:
                told.append(f"there is {'no' if new is None else 'a'} {name} part")
            else:
                told += _image_differences(name, old.content, new.content)
        if not told and self != now:
            told.append("the images that were given")
        return told


def class_changes(old: Sequence[str] | None, new: Sequence[str] | None) -> str:
    """In what classes differ from those of before, in words."""
    if old is None or new is None:
        return "there are none" if new is None else "there were none"
    told = []
    for names, others, what in ((old, new, "missing"), (new, old, "new")):
        if found := [name for name in names if name not in set(others)]:
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            told.append(f"{', '.join(found[:_SHOWN])}{more} {'is' if len(found) == 1 else 'are'} {what}")
    return "; ".join(told) or "they stand in another order"


def preprocessing_of(processor: ImageGPTImageProcessor, crop: str) -> dict[str, Any]:
    """What is said of a processor in a record.

    Args:
        processor: makes ids of pictures.
        crop: what comes before it where pictures are not augmented, "center-crop" or "none".
    """
    options = processor.to_dict()
    return {**{name: options[name] for name in ("size", "resize_mode", "resample", "background")}, "crop": crop}


def _image_differences(part: str, old: ImagesRecord, new: ImagesRecord) -> list[str]:
    if old.num_images != new.num_images:
        return [f"the images of the {part} part ({old.num_images:,}, not {new.num_images:,})"]
    if old.images != new.images:
        return [f"the images of the {part} part"]
    if old.order != new.order:
        return [f"the order of the images of the {part} part"]
    return [f"the labels of the {part} part"] if old.labels != new.labels else []


def _fingerprint(values: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=8).hexdigest()


def _shown(value: Any) -> str:
    if isinstance(value, dict) and set(value) == {"height", "width"}:
        return f"{value['height']}x{value['width']}"
    return str(value)
