"""Parquet files of images, as on the hub: single files, or folders of them. `datasets` converts them to Arrow once."""

import glob
from collections.abc import Sequence
from pathlib import Path

from imagegpt.data.sources.base import SourceFormat, in_one_line
from imagegpt.data.sources.datasets_library import cached_files, files_by_split, quiet_datasets
from imagegpt.data.sources.tables import TableSource

_SUFFIX = ".parquet"


class ParquetFormat(SourceFormat):
    """A parquet file, or a folder of parquet files."""

    description = "a .parquet file or a folder of such files"

    def matches(self, location: str) -> bool:
        """See `SourceFormat`."""
        path = Path(location)
        return bool(_parquet_files(path)) if path.is_dir() else path.suffix.lower() == _SUFFIX and path.is_file()

    def splits(self, location: str) -> list[str]:
        """See `SourceFormat`."""
        path = Path(location)
        found = files_by_split(_parquet_files(path), path) if path.is_dir() else {}
        return [split for split in found if split is not None]

    def open(self, location: str, split: str | None) -> TableSource:
        """See `SourceFormat`."""
        path = Path(location)
        files = files_by_split(_parquet_files(path), path)[split] if path.is_dir() else [path]
        return open_parquet(files, location, split)


def open_parquet(files: Sequence[Path], name: str, split: str | None) -> TableSource:
    """Open the parquet files of one split.

    Raises: ValueError if they are damaged or hold no images.
    """
    with quiet_datasets("parquet") as datasets:
        try:
            # Not `load_dataset`, which reports it to the hub. The library reads the names as patterns.
            converted = datasets.Dataset.from_parquet(
                [glob.escape(str(path.resolve())) for path in files], split="train"
            )
        except Exception as error:  # of pyarrow, pandas or datasets
            reason = in_one_line(error.__cause__ or error)
            raise ValueError(f"{name} cannot be read as parquet ({reason}): get the files again") from error
    return TableSource(cached_files(converted), name, split, [path.resolve() for path in files])


def _parquet_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(f"*{_SUFFIX}") if not path.name.startswith(".")]
