"""How folders of pictures are laid out: where the splits are, and which folders are classes.

The usual layouts, as data sets are published in them, are told by the names of folders alone:

    train/cat/1.jpg                                splits, with a folder for each class or without
    training/ + testing/, train2017/ + val2017/    other names of splits, see `splits.canonical`
    cars_train/ + cars_test/                       names that differ in the split alone
    cat/1.jpg                                      classes
    archive/images/cat/1.jpg                       a folder that holds nothing but such a layout

What might as well be one as the other is refused: a split that is taken for a class spoils a model without a word.
"""

from pathlib import Path

from imagegpt.data.sources.file_listing import folders_in, has_images
from imagegpt.data.splits import canonical, in_order, words_of

# What folders are called that hold pictures or what belongs to them, but are no classes.
_CONTAINERS = {
    "image", "images", "img", "imgs", "jpg", "jpeg", "jpegs", "jpegimages", "png", "pngs", "photos", "pictures",
}  # fmt: skip
_BESIDE_IMAGES = {"annotation", "annotations", "labels", "masks", "trimaps", "segmentationclass", "segmentationobject"}


def picture_root(folder: Path, split: str | None = None) -> Path:
    """The folder in which splits, classes or pictures begin: the folder itself, or the only one in it, and so on.

    A single folder with pictures in it is a class, unless it is called "images" or such.

    Args:
        folder: given by the user, or of a split.
        split: which one; there may be a folder of its name in it.
    """
    place = folder
    while (inner := _only_folder(place, split)) is not None:
        place = inner
        if _is_container(place.name):
            folder = place
    several = [] if _has_own_images(place) else _folders_with_images(place)
    holds_splits = any(canonical(path.name) is not None for path in several)
    is_the_split = split is not None and canonical(place.name) == split
    return place if len(several) > 1 or holds_splits or is_the_split else folder


def split_folders(folder: Path, name: str) -> dict[str, Path]:
    """The first-level folders that are splits, by their meaning ("val" is "validation"); none if there are none.

    Args:
        folder: as `picture_root` gives it.
        name: what the user called the source.
    Raises: ValueError if two mean the same, another folder with images is beside them, or it cannot be told whether
        folders are splits or classes.
    """
    inner = folders_in(folder)
    meanings = {path: meaning for path in inner if (meaning := canonical(path.name)) is not None}
    meanings = meanings or _told_by_one_word(inner)
    found: dict[str, Path] = {}
    for path, meaning in meanings.items():
        if meaning in found:
            raise ValueError(
                f"{name} has the folders {found[meaning].name} and {path.name}, which mean the same split: rename one"
            )
        found[meaning] = path
    others = [path for path in inner if found and path not in meanings and has_images(path)]
    if others:
        splits = ", ".join(path.name for path in found.values())
        raise ValueError(
            f"{name} has images in {others[0].name} beside the split {splits}: "
            "move one of them away, or rename it if it is a class"
        )
    return {split: found[split] for split in in_order(found)}


def check_classes(folder: Path, name: str) -> None:
    """See that the folders in one without splits are not splits within classes, nor pictures and their masks.

    Raises: ValueError if they are.
    """
    several = [] if _has_own_images(folder) else _folders_with_images(folder)
    if len(several) < 2:
        return
    for path in (folder, *several):
        within = [inner.name for inner in folders_in(path) if canonical(inner.name) is not None]
        if len(within) > 1:
            raise ValueError(
                f"{name} has the splits {' and '.join(within[:2])} in its folder {path.name}: "
                "give one of its folders, or make folders of the splits with the classes in them"
            )
    names = sorted((path.name for path in several), key=lambda one: not _is_container(one))
    if _is_container(names[0]) or all(_CONTAINERS & set(words_of(one)) for one in names):
        raise ValueError(
            f"{name} has images in {names[0]} and {names[1]}, which are no names of classes: "
            f"give one of these folders, for example {folder / names[0]}, or rename them if they are classes"
        )


def _told_by_one_word(folders: list[Path]) -> dict[Path, str]:
    """Folders of two or more splits whose names differ in nothing else, such as cars_train and cars_test."""
    groups: dict[tuple[str, ...], dict[Path, str]] = {}
    for path in folders:
        words = words_of(path.name)
        for place, word in enumerate(words):
            meaning = canonical(word)
            if meaning is not None:
                rest = (*words[:place], "", *words[place + 1 :])
                groups.setdefault(rest, {})[path] = meaning
    return next((group for group in groups.values() if len(set(group.values())) > 1), {})


def _is_container(name: str) -> bool:
    return name.lower() in _CONTAINERS | _BESIDE_IMAGES


def _folders_with_images(folder: Path) -> list[Path]:
    return [path for path in folders_in(folder) if has_images(path)]


def _has_own_images(folder: Path) -> bool:
    return has_images(folder, deep=False)


def _only_folder(folder: Path, split: str | None) -> Path | None:
    """The one folder with images in a folder that holds no others; None if it is another split."""
    several = [] if _has_own_images(folder) else _folders_with_images(folder)
    return several[0] if len(several) == 1 and canonical(several[0].name) in (None, split) else None
