"""What every source of pictures has in common."""

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from PIL import Image

from imagegpt.common.text import printable, shortened

UNLABELED = -1  # as in `datasets`


@dataclass(frozen=True, kw_only=True)
class Example:
    """One picture of a source.

    Attributes:
        image: a path, a Pillow image, or uint8 (H, W) or (H, W, C); what `ImageGPTImageProcessor` takes.
        label: its class, None if it has none.
        name: where it is in its source, for people.
    """

    image: Path | Image.Image | np.ndarray
    label: int | None
    name: str


class ImageSource(ABC):
    """Pictures by their number, 0 to `len(source) - 1`. Can be pickled; a copy opens its files itself.

    Attributes:
        name: what the user called it.
        split: which part of it this is; None if it has no parts.
        classes: the name of each label, None if there are none.
        has_a_file_each: whether picture k is in file k of `files`, and nothing else is.
    """

    name: str
    split: str | None
    classes: list[str] | None
    has_a_file_each: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Picture `index`, read as far as its kind must; a file is not opened yet.

        Raises: IndexError if there is none; ValueError if it cannot be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"there is no image {index} in {self.name}: it has {len(self)}, numbered from 0")
        return self._read(index)

    @abstractmethod
    def _read(self, index: int) -> Example: ...

    @abstractmethod
    def files(self) -> Iterable[Path]:
        """The files that the pictures are in, in order: all that can change a picture."""

    @property
    @abstractmethod
    def labels(self) -> Int64[np.ndarray, " n"]:
        """The label of each picture, -1 where there is none, without reading any."""


@contextmanager
def no_warnings() -> Iterator[None]:
    """Silence: of odd but readable files Pillow says much, and nothing that would change anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def in_one_line(error: BaseException) -> str:
    """The message of somebody else's error, fit for the brackets of a sentence of ours."""
    return shortened(printable(" ".join(str(error).split()).rstrip(".")), 300) or type(error).__name__


def missing_library(what: str) -> ValueError:
    """The error for work that needs the extra `data`."""
    return ValueError(f"{what} needs the library datasets: pip install 'imagegpt[data]'")


def name_of(src: Any) -> str:
    """What a user called a source."""
    return os.fspath(src)
