"""Calling Hugging Face's `datasets` without its progress bars and messages, and grouping files by split."""

import glob
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imagegpt.data.sources.base import in_one_line, missing_library
from imagegpt.data.sources.tables import TableSource
from imagegpt.data.splits import canonical


@contextmanager
def quiet_datasets(purpose: str) -> Iterator[Any]:
    """Import the library and silence it.

    Args:
        purpose: what it is needed for, for the error.
    Raises: ValueError if it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise missing_library(purpose) from error
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    quiet, verbosity = are_progress_bars_disabled(), datasets.logging.get_verbosity()
    disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # our error message repeats what matters
    try:
        yield datasets
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not quiet:
            enable_progress_bars()


def cached_files(dataset: Any) -> list[Path]:
    """Return the Arrow files in the library's cache that a data set consists of."""
    return [Path(file["filename"]) for file in dataset.cache_files]


def open_converted(
    files: Sequence[Path], name: str, split: str | None, kind: str, convert: Callable[[Any, list[str]], Any]
) -> TableSource:
    """Convert the files of one split to Arrow, in the library's cache, and open them.

    Args:
        files: of the split.
        name: as the user calls the source.
        split: of the source; None if it has none.
        kind: of the files, for errors.
        convert: given the library and patterns for `files`, returns its data set.
    Raises: ValueError if they are damaged or hold no images.
    """
    paths = [path.resolve() for path in files]
    with quiet_datasets(kind) as datasets:
        try:
            converted = convert(datasets, [glob.escape(str(path)) for path in paths])
        except Exception as error:  # of tarfile, pyarrow, pandas or datasets
            reason = in_one_line(error.__cause__ or error)
            raise ValueError(f"{name} cannot be read as {kind} ({reason}): get the files again") from error
    return TableSource(cached_files(converted), name, split, paths)


def files_by_split(files: Iterable[Path], root: Path) -> dict[str | None, list[Path]]:
    """Group files by split; the key None holds all of them if their names do not mention splits.

    A file belongs to the split that its name begins with, such as `test-00000-of-00001.parquet`, or to that of a folder
    between it and `root`.

    Raises: ValueError if only some of the files belong to a split.
    """
    splits: dict[str | None, list[Path]] = {}
    for path in sorted(files):
        splits.setdefault(_split_of(path, root), []).append(path)
    if None in splits and len(splits) > 1:
        raise ValueError(
            f"{splits[None][0]} belongs to no split and other files in {root} do: rename it, for example to "
            f"train-1{splits[None][0].suffix}"
        )
    return splits


def _split_of(path: Path, root: Path) -> str | None:
    stem = path.name.replace("_", "-").replace(".", "-").split("-")[0]
    folders = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()
    return next((split for text in (stem, *reversed(folders)) if (split := canonical(text)) is not None), None)
