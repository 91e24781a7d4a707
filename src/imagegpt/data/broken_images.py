"""Images that cannot be read: what is said of each, how many there may be, and the list of them.

Whatever reads many images follows one rule: those that cannot be read are left out, counted and listed, as long as they
are no larger a share of all than `max_broken`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from PIL import Image

from imagegpt.common.text import printable
from imagegpt.files.atomic import atomic_write

MAX_BROKEN = 0.05
BROKEN_FILE = "broken-images.txt"  # in the folder of a run, or where a command is given that makes none
READ_ERRORS = (ValueError, FileNotFoundError, MemoryError)  # what reading an image may raise

Trouble = Literal["huge", "missing", "unreadable"]

_SHOWN = 3  # of them, in an error


@dataclass(frozen=True, kw_only=True)
class BrokenImage:
    """An image that could not be read.

    Attributes:
        index: where it stands in its source.
        name: what the source calls it.
        trouble: "huge" (more pixels than Pillow allows, or than there is memory for), "missing" or "unreadable".
        message: what was said.
    """

    index: int
    name: str
    trouble: Trouble
    message: str

    @classmethod
    def of(cls, index: int, name: str, error: BaseException) -> Self:
        """The image that such an error, one of `READ_ERRORS`, was raised for."""
        message = " ".join(str(error).split())
        if isinstance(error, MemoryError):  # its own message, if any, is a library's
            message = f"{name} needs more memory than there is: shrink the image first"
        return cls(index=index, name=name, trouble=trouble_with(error), message=message)


def trouble_with(error: BaseException) -> Trouble:
    """Which kind of trouble an error in reading an image was, by what caused it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Image.DecompressionBombWarning | Image.DecompressionBombError | MemoryError):
            return "huge"
        if isinstance(cause, FileNotFoundError):
            return "missing"
        cause = cause.__cause__
    return "unreadable"


def check_broken(broken: Sequence[BrokenImage], num_images: int, what: str, max_broken: float) -> None:
    """See that there are not too many.

    Args:
        broken: those that were found by now.
        num_images: in all, broken or not.
        what: they are, such as "images of photos".
        max_broken: the share of all that may be broken.
    Raises: ValueError, naming some, if more are, or all.
    """
    if len(broken) == num_images:
        raise ValueError(f"none of the {num_images} {what} can be read: {_some(broken)}")
    if len(broken) > max_broken * num_images:
        raise ValueError(
            f"{len(broken)} of {num_images} {what} are broken and {100 * max_broken:g} % may be "
            f"({_some(broken)}): repair or remove them, or raise max_broken"
        )


def list_of(broken: Sequence[BrokenImage]) -> bytes:
    """The contents of a list of them: a line each with name, kind of trouble and what was said, between tabs."""
    lines = ("\t".join(map(printable, (one.name, one.trouble, one.message))) for one in broken)
    return "".join(f"{line}\n" for line in lines).encode()


def write_list(path: Path, broken: Sequence[BrokenImage]) -> None:
    """Write the list of them, over what is there."""
    atomic_write(path, list_of(broken), "the list of broken images")


def _some(broken: Sequence[BrokenImage]) -> str:
    more = f"; and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
    return "; ".join(f"{one.name} is {one.trouble}" for one in broken[:_SHOWN]) + more
