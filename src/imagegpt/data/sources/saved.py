"""Folders written by `save_to_disk` of `datasets`: one data set, or one for each split."""

from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from imagegpt.common.text import truncate
from imagegpt.data.sources.base import SourceFormat, in_one_line
from imagegpt.data.sources.tables import TableSource
from imagegpt.files.schemas import read_json, validate

STATE_FILE, SPLITS_FILE = "state.json", "dataset_dict.json"  # the names that `save_to_disk` gives them


@dataclass(frozen=True)
class _DataFile:
    """An entry of the list of files in `STATE_FILE`."""

    filename: str


class SavedFormat(SourceFormat):
    """A folder written by `save_to_disk` of `datasets`."""

    description = "a folder of datasets' save_to_disk"

    def matches(self, location: str) -> bool:
        """See `SourceFormat`."""
        return any((Path(location) / name).is_file() for name in (SPLITS_FILE, STATE_FILE))

    def splits(self, location: str) -> list[str]:
        """See `SourceFormat`."""
        return saved_splits(Path(location))

    def open(self, location: str, split: str | None) -> TableSource:
        """See `SourceFormat`."""
        folder = Path(location) if split is None else Path(location) / split
        try:
            state = validate(read_json(folder / STATE_FILE), dict[str, Any], "it")
            listed = validate(state.get("_data_files"), list[_DataFile], "_data_files")
            files = [folder / _checked_name(one.filename) for one in listed]
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{folder / STATE_FILE} is damaged ({in_one_line(error)}): save the data set again"
            ) from error
        return TableSource(files, location, split)


def saved_splits(folder: Path) -> list[str]:
    """Return the splits of a folder written by `save_to_disk`; none if it is a single data set or something else.

    Raises: ValueError if it is damaged.
    """
    path = folder / SPLITS_FILE
    if not path.is_file():
        return []
    try:
        listed = validate(read_json(path), dict[str, Any], "it").get("splits")
        splits = [_checked_name(one) for one in validate(listed, list[str], "splits")]
        if not splits:
            raise ValueError("it lists no splits")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({in_one_line(error)}): save the data set again") from error
    return splits


def _checked_name(name: str) -> str:
    """Return the name of a file in a folder.

    Raises: ValueError if it leads elsewhere.
    """
    if PureWindowsPath(name).name != name or not 0 < len(name) < 256:  # which knows both kinds of slashes, and drives
        raise ValueError(f"{truncate(name, 80)!r} is not the name of a file in this folder")
    return name
