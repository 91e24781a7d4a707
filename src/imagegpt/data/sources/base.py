"""What all sources share: `ImageSource`, and `SourceFormat`, which recognises and opens one kind of source."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Int64
from PIL import Image

from imagegpt.common.registry import Registry
from imagegpt.common.text import printable, truncate
from imagegpt.data.broken_images import READ_ERRORS, BrokenImage
from imagegpt.files.paths import expand_home
from imagegpt.images.processor import ImageGPTImageProcessor

UNLABELED = -1  # as in `datasets`

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image of a source.

    Attributes:
        image: a path, a Pillow image, or uint8 (H, W) or (H, W, C); anything `ImageGPTImageProcessor` takes.
        label: its class; None if it has none.
        name: where it is in its source, for messages.
    """

    image: Path | Image.Image | np.ndarray
    label: int | None
    name: str


class ImageSource(ABC):
    """Images by index, 0 to `len(source) - 1`. Can be pickled; a copy opens its files itself.

    Subclasses implement `__len__` and `_read`, and set `_labels` if there are labels.

    Attributes:
        name: as the user calls the source.
        split: which of its splits this is; None if it has none.
        classes: the name of each label; None without names.
        has_a_file_each: whether image k is in file k of `files`, and nothing else is.
        is_sequential: whether only reading in ascending order is fast, as for a stream.
        fingerprint: identifies the content without reading it, for sources without files; None if only `files` do.
    """

    name: str
    split: str | None = None
    classes: list[str] | None = None
    has_a_file_each: bool = False
    is_sequential: bool = False
    fingerprint: str | None = None
    _labels: Int64[np.ndarray, " n"] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Return image `index`; image files are not opened yet.

        Raises: IndexError if there is none; ValueError if it cannot be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"there is no image {index} in {self.name}: it has {len(self)}, numbered from 0")
        return self._read(index)

    @abstractmethod
    def _read(self, index: int) -> Example: ...

    def read_each(self, indices: Iterable[int], read: Callable[[Example], Result]) -> Iterator[Result | BrokenImage]:
        """Yield the result of `read` for each of some images, or a record of those that cannot be read."""
        for index in indices:
            name = f"image {index}"
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # Pillow warns of odd but readable files
                    example = self[index]
                    name = example.name
                    result = read(example)
            except READ_ERRORS as error:
                yield BrokenImage.of(index, name, error)
            else:
                yield result

    def files(self) -> Iterable[Path]:
        """The files that hold the images, in order: everything on disk that determines them."""
        return ()

    def save_listing(self, path: Path) -> None:  # noqa: B027 - most sources have nothing to list
        """Write the list of images to a file, so that pickled copies read it instead of searching for the images."""

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """The class of each image, -1 where there is none; reads no images."""
        return np.full(len(self), UNLABELED, np.int64) if self._labels is None else self._labels

    @property
    def location(self) -> str:
        """The absolute path of the source, or its name if it is not a file or folder."""
        path = Path(expand_home(self.name))
        return str(path.resolve()) if path.exists() else self.name

    def _label(self, index: int) -> int | None:
        label = UNLABELED if self._labels is None else int(self._labels[index])
        return None if label < 0 else label


class SourceFormat(ABC):
    """A kind of source: recognises locations of this kind and opens them.

    To add one to this package, write a subclass in a module of its own and list it in `registry.FORMATS`. Another
    package declares it as an entry point of the group "imagegpt.sources", or registers it by `@SOURCES.register(name)`.

    Attributes:
        description: of such a source, for error messages, for example "a folder of images".
    """

    description: str

    @abstractmethod
    def matches(self, location: str) -> bool:
        """Return whether a location, a path or a name, is of this kind; without reading images."""

    def splits(self, location: str) -> list[str]:
        """Return the splits of a location of this kind; none if it is a single data set."""
        return []

    @abstractmethod
    def open(self, location: str, split: str | None) -> ImageSource:
        """Open a location of this kind; `split` is one of `splits`, or None if there are none."""

    def processor(self) -> ImageGPTImageProcessor | None:
        """Return a processor that encodes these images exactly; None if palette and size are the user's choice."""
        return None


SOURCES: Registry[type[SourceFormat]] = Registry("data source", "imagegpt.sources")


def in_one_line(error: BaseException) -> str:
    """The message of another library's error, short enough for parentheses in a sentence of ours."""
    return truncate(printable(" ".join(str(error).split()).rstrip(".")), 300) or type(error).__name__


def missing_library(what: str) -> ValueError:
    """The error for work that needs the extra `data`."""
    return ValueError(f"{what} needs the library datasets: pip install 'imagegpt[data]'")
