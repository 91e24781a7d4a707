"""Names of the parts of a data set, and choosing one."""

from collections.abc import Iterable, Sequence

_MEANINGS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
_ORDER = ("train", "validation", "test")


def canonical(name: str) -> str | None:
    """The meaning of a name, "train", "validation" or "test", in any case of its letters; None if it has none."""
    return _MEANINGS.get(name.lower())


def in_order(splits: Iterable[str]) -> list[str]:
    """Names sorted: train, validation, test, then others by name."""

    def rank(split: str) -> tuple[int, str]:
        meaning = canonical(split)
        return (len(_ORDER) if meaning is None else _ORDER.index(meaning)), split

    return sorted(splits, key=rank)


def choose_split(source: str, available: Sequence[str], wanted: str | None) -> str | None:
    """The split of a source that was asked for, by its name there; "val" and "valid" mean "validation".

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
    meaning = canonical(wanted)
    alike = [split for split in available if meaning is not None and canonical(split) == meaning]
    if len(alike) != 1:
        raise ValueError(f"{source} has no split {wanted!r}: choose one of {known}")
    return alike[0]
