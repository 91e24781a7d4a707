"""Parquet files of images, as on the hub: single files, or folders of them. `datasets` converts them to Arrow once."""

from pathlib import Path
from typing import Any

from imagegpt.data.sources.base import SourceFormat
from imagegpt.data.sources.datasets_library import files_by_split, open_converted
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

        def convert(datasets: Any, patterns: list[str]) -> Any:
            return datasets.Dataset.from_parquet(patterns, split="train")  # `load_dataset` would report it to the hub

        return open_converted(files, location, split, "parquet", convert)


def _parquet_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(f"*{_SUFFIX}") if not path.name.startswith(".")]
