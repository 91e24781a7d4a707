"""Images that cannot be read: a record of each, a limit on how many there may be, and a file that lists them.

Everything that reads many images follows one rule: broken images are skipped, counted and listed, as long as they are
at most the fraction `max_broken` of all images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from PIL import Image

from imagegpt.common.text import printable
from imagegpt.files.atomic import atomic_write

MAX_BROKEN = 0.05
BROKEN_FILE = "broken-images.txt"  # in the folder of a run, or in the current folder
READ_ERRORS = (ValueError, FileNotFoundError, MemoryError)  # that reading an image may raise

Trouble = Literal["huge", "missing", "unreadable"]

_MAX_SHOWN = 3  # in an error


@dataclass(frozen=True, kw_only=True)
class BrokenImage:
    """An image that could not be read.

    Attributes:
        index: in its source.
        name: in its source.
        trouble: "huge" (more pixels than Pillow allows, or than fit into memory), "missing" or "unreadable".
        message: of the error.
    """

    index: int
    name: str
    trouble: Trouble
    message: str

    @classmethod
    def of(cls, index: int, name: str, error: BaseException) -> Self:
        """Record the image for which one of `READ_ERRORS` was raised."""
        message = " ".join(str(error).split())
        if isinstance(error, MemoryError):  # its message, if any, comes from a library
            message = f"{name} needs more memory than there is: shrink the image first"
        return cls(index=index, name=name, trouble=trouble_with(error), message=message)


def trouble_with(error: BaseException) -> Trouble:
    """Classify an error that reading an image raised, by its causes."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Image.DecompressionBombWarning | Image.DecompressionBombError | MemoryError):
            return "huge"
        if isinstance(cause, FileNotFoundError):
            return "missing"
        cause = cause.__cause__
    return "unreadable"


def check_broken(broken: Sequence[BrokenImage], num_images: int, what: str, max_broken: float) -> None:
    """Check that there are not too many broken images.

    Args:
        broken: those found so far.
        num_images: in all, broken or not.
        what: they are, for the error, such as "images of photos".
        max_broken: the largest fraction that may be broken.
    Raises: ValueError, naming some of them, if more are broken, or all.
    """
    if len(broken) == num_images:
        raise ValueError(f"none of the {num_images} {what} can be read: {_some(broken)}")
    if len(broken) > max_broken * num_images:
        raise ValueError(
            f"{len(broken)} of {num_images} {what} are broken and {100 * max_broken:g} % may be "
            f"({_some(broken)}): repair or remove them, or raise max_broken"
        )


def list_of(broken: Sequence[BrokenImage]) -> bytes:
    """Format a list of broken images: a line each with name, trouble and message, separated by tabs."""
    lines = ("\t".join(map(printable, (one.name, one.trouble, one.message))) for one in broken)
    return "".join(f"{line}\n" for line in lines).encode()


def write_list(path: Path, broken: Sequence[BrokenImage]) -> None:
    """Write a list of broken images, replacing an existing file."""
    atomic_write(path, list_of(broken), "the list of broken images")


def _some(broken: Sequence[BrokenImage]) -> str:
    more = f"; and {len(broken) - _MAX_SHOWN} more" if len(broken) > _MAX_SHOWN else ""
    return "; ".join(f"{one.name} is {one.trouble}" for one in broken[:_MAX_SHOWN]) + more
