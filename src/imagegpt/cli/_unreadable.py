"""What a command does about images that cannot be read: it leaves them out, lists them in a file, and ends with 1."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from imagegpt.cli import _console

if TYPE_CHECKING:  # it imports Pillow, which `--help` does not need
    from imagegpt.data.broken_images import BrokenImage

STATUS = 1  # of a command that did its work, but for some images
_SHOWN = 3

Read = TypeVar("Read")


def read_images(
    paths: Sequence[Path], read: Callable[[Path], Read], max_broken: float
) -> "tuple[dict[int, Read], list[BrokenImage]]":
    """Read images that were named one by one.

    Args:
        paths: of them.
        read: makes something of one.
        max_broken: the share of them that may be broken.
    Returns: what was made, by the number of the path, and those that are broken.
    Raises: ValueError if there are too many of these.
    """
    from imagegpt.data.broken_images import READ_ERRORS, BrokenImage, check_broken

    found: dict[int, Read] = {}
    broken: list[BrokenImage] = []
    for index, path in enumerate(paths):
        try:
            found[index] = read(path)
        except READ_ERRORS as error:
            if len(paths) == 1:
                raise
            broken.append(BrokenImage.of(index, str(path), error))
            check_broken(broken, len(paths), "images", max_broken)
    return found, broken


def tell_broken(broken: "Sequence[BrokenImage]", listed_in: Path | str) -> None:
    """Name some of those that were left out, if there are any, and the file that lists them all."""
    if not broken:
        return
    for one in broken[:_SHOWN]:
        _console.say(f"left out ({one.trouble}): {one.message}")
    _console.say(f"{len(broken):,} broken {'image' if len(broken) == 1 else 'images'} left out: see {listed_in}")


def list_broken(broken: "Sequence[BrokenImage]", folder: Path) -> None:
    """Tell of those that were left out, if there are any, and write the list of them into a folder of the user's.

    A file that has its name stays, unless it is the same list; the next free name is taken.
    """
    from imagegpt.data.broken_images import BROKEN_FILE, list_of, write_list

    if not broken:
        return
    numbered = (f"-{number}" for number in itertools.count(2))
    paths = (folder / BROKEN_FILE.replace(".txt", f"{more}.txt") for more in itertools.chain([""], numbered))
    try:
        path = next(one for one in paths if not one.exists() or one.read_bytes() == list_of(broken))
        write_list(path, broken)
    except OSError as error:  # the work is worth as much without the list
        for one in broken[_SHOWN:]:
            _console.say(f"left out ({one.trouble}): {one.message}")
        tell_broken(broken, f"above, {error}")
    else:
        tell_broken(broken, path)
