"""The parts of a data set: their names, choosing one, and assigning images to parts by their pixels.

Axis letters: N images.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float64, Int64, UInt64

_MEANINGS = {
    "train": "train", "training": "train", "trainset": "train",
    "validation": "validation", "val": "validation", "valid": "validation", "valset": "validation",
    "test": "test", "testing": "test", "testset": "test",
}  # fmt: skip
_ORDER = ("train", "validation", "test")
# Words that say nothing of which split it is: train_images, test-set.
_FILLERS = {
    "data", "dataset", "folder", "image", "images", "img", "imgs", "jpeg", "jpg", "photos", "pictures", "png", "set",
    "split",
}  # fmt: skip


def canonical(name: str) -> str | None:
    """The meaning of a split's name, "train", "validation" or "test"; None if it has none.

    Case, numbers and words such as "images" do not count: "Training", "val2017" and "test_images" have one.
    """
    words = words_of(name) if re.fullmatch(r"[\w .-]*", name) else []
    telling = [word for word in words if word not in _FILLERS]
    return _MEANINGS.get(telling[0]) if len(telling) == 1 else None


def words_of(name: str) -> list[str]:
    """The words in a name, in lower case, without its numbers and what is between them."""
    return re.findall(r"[^\W\d_]+", name.lower())


def in_order(splits: Iterable[str]) -> list[str]:
    """Names sorted: train, validation, test, then others by name."""

    def rank(split: str) -> tuple[int, str]:
        meaning = canonical(split)
        return (len(_ORDER) if meaning is None else _ORDER.index(meaning)), split

    return sorted(splits, key=rank)


def choose_split(source: str, available: Sequence[str], wanted: str | None) -> str | None:
    """The split of a source that was asked for, by its name there or its meaning: "val" is "validation".

    Args:
        source: its name, for the error.
        available: its splits; none if it has no parts.
        wanted: what the user said.
    Returns: None if the source has no parts.
    Raises: ValueError if there is no such split, or one must be chosen and was not.
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
    """Assign images to the parts train, validation and test; the last two only if their share is above 0.

    Each distinct image has a place from 0 to 1, a function of the seed and its hash alone. Places below `validation`
    are for validation, the topmost `test` for testing. So equal images share a part, images keep theirs when others are
    added, and changing one share moves no image between the other two parts.

    Args:
        hashes: of the images, see `identity.pixel_hash`.
        seed: from 0.
        validation: the share to expect in this part, 0 to 1; of few images it may be off by several.
        test: the same.
        fill: give a part that would be empty the image whose place is nearest, with its duplicates.
    Returns: rows, ascending; parts may be empty.
    """
    places = _places(hashes, seed)
    in_validation, in_test = places < validation, places >= 1 - test
    if fill and validation and len(hashes) and not in_validation.any():
        in_validation = places == places.min()
        in_test &= ~in_validation
    if fill and test and not in_test.any() and not in_validation.all():
        in_test = places == places[~in_validation].max()
    parts = {"train": ~(in_validation | in_test)}
    parts |= {"validation": in_validation} if validation else {}
    parts |= {"test": in_test} if test else {}
    return {name: np.flatnonzero(chosen) for name, chosen in parts.items()}


def _places(hashes: UInt64[np.ndarray, " n"], seed: int) -> Float64[np.ndarray, " n"]:
    """Numbers from 0 to 1, as if drawn evenly. Source: the mixing function of SplitMix64 (Steele et al., 2014)."""
    mixed = hashes ^ _mixed(np.array([seed], np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return (_mixed(mixed) >> np.uint64(11)) * 2.0**-53


def _mixed(values: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))
