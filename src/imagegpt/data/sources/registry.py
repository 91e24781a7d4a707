"""Opening a source: find the format of a location, then let it open the location.

Our formats are tried in the order of `FORMATS`, then those of other packages (entry points of the group
"imagegpt.sources"), then names on the hub. To add a format to this package, add a line to `FORMATS`.
"""

import os
from pathlib import Path

from imagegpt.data.encoding_folder import is_encoded
from imagegpt.data.sources import arrays, cifar, digits, folders, hub, idx, parquet, saved, webdataset
from imagegpt.data.sources.base import SOURCES, ImageSource, SourceFormat
from imagegpt.data.splits import choose_split, in_order
from imagegpt.files.paths import expand_home
from imagegpt.images.processor import ImageGPTImageProcessor

# In the order in which they are tried.
FORMATS: dict[str, type[SourceFormat]] = {
    "digits": digits.DigitsFormat,
    "saved": saved.SavedFormat,
    "cifar": cifar.CifarFormat,
    "idx": idx.IdxFormat,
    "folder": folders.FolderFormat,
    "parquet": parquet.ParquetFormat,
    "webdataset": webdataset.WebDatasetFormat,
    "arrays": arrays.ArrayFormat,
    "hub": hub.HubFormat,
}
for _name, _format in FORMATS.items():
    SOURCES.register(_name)(_format)

_HUB = "hub"  # tried last, and for text only: `owner/name` may be a path


def open_images(src: str | os.PathLike[str], *, split: str | None = None) -> ImageSource:
    """Open a source of images.

    Args:
        src: a folder of image files, with a subfolder for each class or without, and with folders `train`,
            `validation` and `test` or without, which may have other usual names, see `folder_layout`; a .npy or .npz
            file of uint8 images, or a folder with `train.npz` and such; .parquet, as on the hub, or a folder of it;
            WebDataset .tar files, as a file, a folder or a pattern such as `train-{000..012}.tar`; a folder of
            `datasets`' save_to_disk; a file or folder of CIFAR-10 or CIFAR-100, binary or pickled, or of IDX files, as
            MNIST; "digits", scikit-learn's; or a data set on the hub, "owner/name" or
            "hub:owner/name?config=...&revision=...&column=...&streaming=1".
        split: one of its splits, if it has any.
    Raises: ValueError, FileNotFoundError or ConnectionError, in one sentence, if there is no such source, it is
        damaged, or there is no such split.
    """
    location, source_format = _find_format(src)
    return source_format.open(location, choose_split(location, source_format.splits(location), split))


def list_splits(src: str | os.PathLike[str]) -> list[str]:
    """Return the splits of a source: train, validation, test, then others; none if it is a single data set.

    Raises: as `open_images`.
    """
    location, source_format = _find_format(src)
    return in_order(source_format.splits(location))


def source_processor(src: str | os.PathLike[str]) -> ImageGPTImageProcessor | None:
    """Return the processor that a source prescribes; None if palette and size are the user's choice.

    A location that cannot be opened has none: opening it reports why.
    """
    try:
        return _find_format(src)[1].processor()
    except (ValueError, OSError):
        return None


def _find_format(src: str | os.PathLike[str]) -> tuple[str, SourceFormat]:
    """Find the format of a source, without reading its images."""
    location = expand_home(os.fspath(src))
    path = Path(location)
    if location and path.is_dir() and is_encoded(path):
        raise ValueError(f"{location} holds encoded images: give the source they were encoded from")
    names = [name for name in SOURCES.names() if name != _HUB] + ([_HUB] if isinstance(src, str) else [])
    for name in names if location else ():
        source_format = SOURCES.get(name)()
        if source_format.matches(location):
            return location, source_format
    kinds = "; ".join(SOURCES.get(name).description for name in SOURCES.names())
    if not location or not path.exists():
        raise FileNotFoundError(f"{location!r} does not exist: check the path, or give {kinds}")
    found = "holds no images" if path.is_dir() else "is no file that holds many images"
    raise ValueError(f"{location} {found}: give {kinds}")
