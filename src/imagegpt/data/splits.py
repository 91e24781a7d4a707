"""The splits of a data set: their names, choosing one, and assigning images to splits by their pixels.

Axis letters: N images.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from imagegpt.data.shuffling import mix_bits

_MEANINGS = {
    "train": "train", "training": "train", "trainset": "train",
    "validation": "validation", "val": "validation", "valid": "validation", "valset": "validation",
    "test": "test", "testing": "test", "testset": "test",
}  # fmt: skip
_ORDER = ("train", "validation", "test")
# Words without a meaning for the split: train_images, test-set.
_FILLERS = {
    "data", "dataset", "folder", "image", "images", "img", "imgs", "jpeg", "jpg", "photos", "pictures", "png", "set",
    "split",
}  # fmt: skip


def canonical(name: str) -> str | None:
    """Return which split a name means: "train", "validation" or "test"; None if it means none of them.

    Case, numbers and words such as "images" do not count: "Training", "val2017" and "test_images" mean a split.
    """
    words = words_of(name) if re.fullmatch(r"[\w .-]*", name) else []
    telling = [word for word in words if word not in _FILLERS]
    return _MEANINGS.get(telling[0]) if len(telling) == 1 else None


def words_of(name: str) -> list[str]:
    """Return the words in a name, in lower case, without numbers and separators."""
    return re.findall(r"[^\W\d_]+", name.lower())


def in_order(splits: Iterable[str]) -> list[str]:
    """Sort names: train, validation, test, then others alphabetically."""

    def rank(split: str) -> tuple[int, str]:
        meaning = canonical(split)
        return (len(_ORDER) if meaning is None else _ORDER.index(meaning)), split

    return sorted(splits, key=rank)


def choose_split(source: str, available: Sequence[str], wanted: str | None) -> str | None:
    """Find the split of a source that the user asks for, by its name there or by its meaning: "val" is "validation".

    Args:
        source: its name, for the error.
        available: its splits; empty if it has none.
        wanted: the split that the user asks for, if any.
    Returns: the name of the split in the source; None if the source has no splits.
    Raises: ValueError if there is no such split, or if the source has splits and none is asked for.
    """
    known = ", ".join(in_order(available))
    if wanted is None:
        if not available:
            return None
        raise ValueError(f"{source} has the splits {known}: choose one, for example --split {in_order(available)[0]}")
    if not available:
        raise ValueError(f"{source} has no splits and {wanted!r} was asked for: leave the split out")
    if wanted in available:
        return wanted
    meaning = _MEANINGS.get(wanted.lower())
    alike = [split for split in available if meaning is not None and canonical(split) == meaning]
    if len(alike) != 1:
        raise ValueError(f"{source} has no split {wanted!r}: choose one of {known}")
    return alike[0]


def split_by_hash(
    hashes: UInt64[np.ndarray, " n"], *, seed: int, validation: float, test: float = 0.0, fill: bool = True
) -> dict[str, Int64[np.ndarray, " m"]]:
    """Assign images to the splits train, validation and test; the last two only if their fraction is above 0.

    Each distinct image has a position from 0 to 1, a function of the seed and its hash alone. Positions below
    `validation` are for validation, the topmost `test` for testing. So identical images are in one split, images stay
    in theirs when others are added, and changing one fraction moves no image between the other two splits.

    Args:
        hashes: of the images, see `identity.pixel_hash`.
        seed: from 0.
        validation: the expected fraction of images in this split, 0 to 1; with few images it may be off by several.
        test: the same for the test split.
        fill: give a split that would be empty the image whose position is nearest, with its duplicates.
    Returns: split -> indices, ascending; a split may be empty.
    """
    positions = _positions(hashes, seed)
    in_validation, in_test = positions < validation, positions >= 1 - test
    if fill and validation and len(hashes) and not in_validation.any():
        in_validation = positions == positions.min()
        in_test &= ~in_validation
    if fill and test and not in_test.any() and not in_validation.all():
        in_test = positions == positions[~in_validation].max()
    splits = {"train": ~(in_validation | in_test)}
    splits |= {"validation": in_validation} if validation else {}
    splits |= {"test": in_test} if test else {}
    return {name: np.flatnonzero(chosen) for name, chosen in splits.items()}


def _positions(hashes: UInt64[np.ndarray, " n"], seed: int) -> Float64[np.ndarray, " n"]:
    """Map hashes to numbers that are uniformly distributed from 0 to 1."""
    mixed = hashes ^ mix_bits(np.array([seed], np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return (mix_bits(mixed) >> np.uint64(11)) * 2.0**-53
