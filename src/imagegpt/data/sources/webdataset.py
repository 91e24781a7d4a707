"""WebDataset: tar files in which the files of a sample share their name, such as 000.jpg, 000.cls and 000.json.

The label of an image is the number in its `.cls` file.

`datasets` converts them to Arrow once, in its cache. It unpickles nothing: of members that are pickles it keeps the
bytes, and of torch's files it reads tensors only.
"""

import glob
import re
from pathlib import Path
from typing import Any

from imagegpt.data.sources.base import SourceFormat
from imagegpt.data.sources.datasets_library import files_by_split, open_converted
from imagegpt.data.sources.tables import TableSource

_SUFFIX = ".tar"
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_SHARDS = 1_000_000


class WebDatasetFormat(SourceFormat):
    """A .tar file, a folder of them, or a pattern such as `train-{000..012}.tar` or `shards/*.tar`."""

    description = "WebDataset .tar files"

    def matches(self, location: str) -> bool:
        """See `SourceFormat`."""
        if Path(location).is_dir():
            return any(Path(location).glob(f"*{_SUFFIX}"))
        return location.lower().endswith(_SUFFIX) and (Path(location).is_file() or _is_pattern(location))

    def splits(self, location: str) -> list[str]:
        """See `SourceFormat`; only a folder has splits."""
        path = Path(location)
        found = files_by_split(path.glob(f"*{_SUFFIX}"), path) if path.is_dir() else {}
        return [split for split in found if split is not None]

    def open(self, location: str, split: str | None) -> TableSource:
        """See `SourceFormat`."""
        path = Path(location)
        files = files_by_split(path.glob(f"*{_SUFFIX}"), path)[split] if path.is_dir() else expand_pattern(location)

        def convert(datasets: Any, patterns: list[str]) -> Any:
            return datasets.load_dataset("webdataset", data_files={"train": patterns}, split="train")

        return open_converted(files, location, split, "WebDataset", convert)


def expand_pattern(pattern: str) -> list[Path]:
    """Find the files of a pattern: braces with a range of numbers or a list, then `*`, `?` and `[...]`.

    Returns: the files, in the order of the braces, those of one wildcard sorted.
    Raises: FileNotFoundError if a name matches no file; ValueError for a range that is too long.
    """
    files: list[Path] = []
    for name in _expand_braces(pattern):
        found = [Path(name)] if Path(name).is_file() else sorted(map(Path, glob.glob(name)))  # noqa: PTH207 - absolute too
        if not found:
            raise FileNotFoundError(f"there is no file {name}: check the pattern {pattern}")
        files += found
    return files


def _expand_braces(pattern: str) -> list[str]:
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    numbers = _RANGE.fullmatch(match[1])
    if numbers is None:
        choices = match[1].split(",")
    else:
        first, last = int(numbers[1]), int(numbers[2])
        if not 0 <= last - first < _MAX_SHARDS:
            raise ValueError(f"{pattern} has the range {match[0]}: give an ascending one of at most {_MAX_SHARDS:,}")
        choices = [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]
    head, tail = pattern[: match.start()], _expand_braces(pattern[match.end() :])
    return [f"{head}{choice}{rest}" for choice in choices for rest in tail]


def _is_pattern(location: str) -> bool:
    return any(character in location for character in "*?[{")
