"""Images that cannot be read: commands skip them, list them in a file and exit with code 1."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from imagegpt.cli import _console

if TYPE_CHECKING:  # it imports Pillow, which `--help` does not need
    from imagegpt.data.broken_images import BrokenImage

EXIT_STATUS = 1  # of a command that skipped images
_MAX_SHOWN = 3

Result = TypeVar("Result")


def read_images(
    paths: Sequence[Path], read: Callable[[Path], Result], max_broken: float
) -> "tuple[dict[int, Result], list[BrokenImage]]":
    """Read the images that the user named one by one.

    Args:
        paths: of the images.
        read: called for each path.
        max_broken: fraction of the images that may be broken.
    Returns: path index -> result of `read`, and the broken images.
    Raises: ValueError if too many are broken.
    """
    from imagegpt.data.broken_images import READ_ERRORS, BrokenImage, check_broken

    found: dict[int, Result] = {}
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


def report_broken(broken: "Sequence[BrokenImage]", listed_in: Path | str) -> None:
    """Print the first few broken images, if any, and the file that lists them all."""
    if not broken:
        return
    for one in broken[:_MAX_SHOWN]:
        _console.print_stderr(f"skipped ({one.trouble}): {one.message}")
    _console.print_stderr(
        f"{len(broken):,} broken {'image' if len(broken) == 1 else 'images'} skipped: see {listed_in}"
    )


def write_broken_list(broken: "Sequence[BrokenImage]", folder: Path) -> None:
    """Report the broken images, if any, and write the list of them to a folder of the user's.

    An existing file of that name is kept unless it is the same list; the next unused name is taken.
    """
    from imagegpt.data.broken_images import BROKEN_FILE, list_of, write_list

    if not broken:
        return
    numbered = (f"-{number}" for number in itertools.count(2))
    paths = (folder / BROKEN_FILE.replace(".txt", f"{more}.txt") for more in itertools.chain([""], numbered))
    try:
        path = next(one for one in paths if not one.exists() or one.read_bytes() == list_of(broken))
        write_list(path, broken)
    except OSError as error:  # a missing list is no reason to fail
        for one in broken[_MAX_SHOWN:]:
            _console.print_stderr(f"skipped ({one.trouble}): {one.message}")
        report_broken(broken, f"above, {error}")
    else:
        report_broken(broken, path)
