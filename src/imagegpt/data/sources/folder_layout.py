"""The layout of a folder of images: which folders are splits, and which are classes.

The usual layouts of published data sets are recognised by the names of folders alone:

    train/cat/1.jpg                                splits, with a folder for each class or without
    training/ + testing/, train2017/ + val2017/    other names of splits, see `splits.canonical`
    cars_train/ + cars_test/                       names that differ in the split alone
    cat/1.jpg                                      classes
    archive/images/cat/1.jpg                       a folder with nothing but such a layout

Ambiguous layouts are refused: a split that is mistaken for a class would silently spoil a model.
"""

from pathlib import Path

from imagegpt.data.sources.file_listing import folders_in, has_images
from imagegpt.data.splits import canonical, in_order, words_of

# Names of folders that hold images or annotations but are not classes.
_CONTAINERS = {
    "image", "images", "img", "imgs", "jpg", "jpeg", "jpegs", "jpegimages", "png", "pngs", "photos", "pictures",
}  # fmt: skip
_BESIDE_IMAGES = {"annotation", "annotations", "labels", "masks", "trimaps", "segmentationclass", "segmentationobject"}


def image_root(folder: Path, split: str | None = None) -> Path:
    """Find the folder that holds splits, classes or images: the folder itself, or the only one in it, and so on.

    A single folder with images in it is a class, unless its name is "images" or the like.

    Args:
        folder: given by the user, or of a split.
        split: whose folder it is, if it is one; it may hold another folder of that name.
    """
    path = folder
    while (inner := _only_folder(path, split)) is not None:
        path = inner
        if _is_container(path.name):
            folder = path
    several = [] if has_images(path, deep=False) else _folders_with_images(path)
    holds_splits = any(canonical(one.name) is not None for one in several)
    is_the_split = split is not None and canonical(path.name) == split
    return path if len(several) > 1 or holds_splits or is_the_split else folder


def split_folders(folder: Path, name: str) -> dict[str, Path]:
    """Find the first-level folders that are splits, by the split they mean ("val" is "validation").

    Args:
        folder: as `image_root` returns it.
        name: as the user calls the source.
    Raises: ValueError if two folders are the same split, or another folder with images is beside them.
    """
    inner = folders_in(folder)
    meanings = {path: meaning for path in inner if (meaning := canonical(path.name)) is not None}
    meanings = meanings or _splits_by_one_word(inner)
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
    """Check that the folders in a folder without splits are classes: not splits in classes, nor images and masks.

    Raises: ValueError if they are not.
    """
    several = [] if has_images(folder, deep=False) else _folders_with_images(folder)
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
            f"{name} has images in {names[0]} and {names[1]}, which are not names of classes: "
            f"give one of these folders, for example {folder / names[0]}, or rename them if they are classes"
        )


def _splits_by_one_word(folders: list[Path]) -> dict[Path, str]:
    """Find folders whose names differ only in the split, such as cars_train and cars_test."""
    groups: dict[tuple[str, ...], dict[Path, str]] = {}
    for path in folders:
        words = words_of(path.name)
        for position, word in enumerate(words):
            meaning = canonical(word)
            if meaning is not None:
                rest = (*words[:position], "", *words[position + 1 :])
                groups.setdefault(rest, {})[path] = meaning
    return next((group for group in groups.values() if len(set(group.values())) > 1), {})


def _is_container(name: str) -> bool:
    return name.lower() in _CONTAINERS | _BESIDE_IMAGES


def _folders_with_images(folder: Path) -> list[Path]:
    return [path for path in folders_in(folder) if has_images(path)]


def _only_folder(folder: Path, split: str | None) -> Path | None:
    """Return the only folder with images in a folder without images of its own; None if it is another split."""
    several = [] if has_images(folder, deep=False) else _folders_with_images(folder)
    return several[0] if len(several) == 1 and canonical(several[0].name) in (None, split) else None
