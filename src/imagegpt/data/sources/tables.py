"""Pictures as files inside tables: parquet, folders of `datasets`' save_to_disk, and data sets on the hub.

All three come down to Arrow files in a list, which are mapped; `datasets` turns parquet into such files once, in its
cache. A picture is the content of an image file, as the hub keeps them, and is decoded here, by us: `datasets` would
stop at the first broken one.
"""

import glob
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from imagegpt.common.text import printable, shortened
from imagegpt.data.sources.base import UNLABELED, Example, ImageSource, in_one_line, missing_library
from imagegpt.data.sources.table_columns import class_names, image_column, label_column, without_bytes
from imagegpt.data.splits import canonical, in_order
from imagegpt.files.schemas import read_json, validate
from imagegpt.images.decoding import open_picture

if TYPE_CHECKING:
    from pyarrow import Table


STATE_FILE, SPLITS_FILE = "state.json", "dataset_dict.json"  # what `save_to_disk` calls them


_MAX_LABEL = (1 << 31) - 1


@dataclass(frozen=True)
class _DataFile:
    """What `save_to_disk` lists in its state."""

    filename: str


class TableSource(ImageSource):
    """The images in Arrow files.

    Args:
        files: in Arrow's streaming format, all with the same columns.
        name: what the user called the source.
        split: which of its splits this is, None if it has none.
        origins: the files that these were made of; none if they are the user's own.
    Raises: ValueError if a file is damaged or the columns are not as said at `image_column` and `label_column`.
    """

    def __init__(self, files: Sequence[Path], name: str, split: str | None, origins: Sequence[Path] = ()) -> None:
        self._files, self.name, self.split, self._origins = list(files), name, split, list(origins)
        table = _mapped(self._files) if self._files else None
        if not table:
            raise ValueError(f"{name} has no rows: give a source with images")
        self._column = image_column(table.schema, name)
        self._images = table.column(self._column)
        label = label_column(table.schema, name)
        self._labels = None if label is None else table.column(label).to_pylist()
        self.classes = None if label is None else class_names(table.schema, label)
        highest = max((one for one in self._labels or () if one is not None), default=-1)
        if highest > (_MAX_LABEL if self.classes is None else len(self.classes) - 1):
            raise ValueError(f"{name} has the label {highest}, which is no class: save the data set again")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._files, self.name, self.split, self._origins)

    def __len__(self) -> int:
        return len(self._images)

    def _read(self, index: int) -> Example:
        cell = self._images[index].as_py()
        content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        name = f"row {index}" if path is None else f"row {index} ({shortened(printable(path), 80)})"
        label = None if self._labels is None else self._labels[index]
        known = None if label is None or label < 0 else int(label)
        if content is not None:
            return Example(image=open_picture(io.BytesIO(content), name), label=known, name=name)
        if path is None:
            raise ValueError(f"{name} is empty: there is no image in it")
        if not Path(path).is_file():
            raise FileNotFoundError(f"{name} names a file that is not there: get the data set with its files")
        return Example(image=Path(path), label=known, name=name)

    def files(self) -> Iterable[Path]:
        """See `ImageSource`; those that the table only names are among them."""
        yield from self._origins or self._files
        if self._images.type.num_fields:  # structures of bytes and path
            for row in self._images.filter(without_bytes(self._images)).to_pylist():
                path = None if row is None else row.get("path")
                if path is not None and Path(path).is_file():  # and not a device, which is read without an end
                    yield Path(path)

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """See `ImageSource`."""
        if self._labels is None:
            return np.full(len(self), UNLABELED, np.int64)
        return np.array([UNLABELED if one is None or one < 0 else one for one in self._labels], np.int64)


def open_parquet(files: Sequence[Path], name: str, split: str | None) -> TableSource:
    """The images of parquet files, which together are one split.

    Raises: ValueError if they are damaged or hold no images.
    """
    if not files:
        raise ValueError(f"{name} holds no parquet files: give another folder")
    with _quiet_datasets("parquet") as datasets:
        try:
            # Not `load_dataset`, which tells the hub about it. The names are patterns there.
            made = datasets.Dataset.from_parquet([glob.escape(str(path.resolve())) for path in files], split="train")
        except Exception as error:  # pyarrow's, pandas' and datasets' own, all told alike
            reason = in_one_line(error.__cause__ or error)
            raise ValueError(f"{name} cannot be read as parquet ({reason}): get the files again") from error
    return TableSource(_cached(made), name, split, [path.resolve() for path in files])


def parquet_splits(folder: Path) -> dict[str | None, list[Path]]:
    """The parquet files below a folder by their split; None stands for all of them if the names tell of no splits.

    A file is of the split that its name begins with, such as `test-00000-of-00001.parquet`, or that of its folder.
    """
    files = sorted(path for path in folder.rglob("*.parquet") if not path.name.startswith("."))
    splits: dict[str | None, list[Path]] = {}
    for path in files:
        splits.setdefault(_split_of(path, folder), []).append(path)
    if None in splits and len(splits) > 1:
        raise ValueError(
            f"{splits[None][0]} is of no split and other files in {folder} are: "
            "call it after one, such as train-1.parquet"
        )
    return splits


def open_saved(folder: Path, name: str, split: str | None) -> TableSource:
    """The images of a folder that `save_to_disk` wrote, or of one of its splits.

    Raises: ValueError if it is damaged or holds no images.
    """
    place = folder if split is None else folder / split
    try:
        state = validate(read_json(place / STATE_FILE), dict[str, Any], "it")
        listed = validate(state.get("_data_files"), list[_DataFile], "_data_files")
        files = [place / _inside(one.filename) for one in listed]
    except (OSError, ValueError) as error:
        raise ValueError(f"{place / STATE_FILE} is damaged ({in_one_line(error)}): save the data set again") from error
    return TableSource(files, name, split)


def saved_splits(folder: Path) -> list[str]:
    """The splits of a folder that `save_to_disk` wrote; none if it is a single data set.

    Raises: ValueError if it is damaged.
    """
    path = folder / SPLITS_FILE
    if not path.is_file():
        return []
    try:
        listed = validate(read_json(path), dict[str, Any], "it").get("splits")
        splits = [_inside(one) for one in validate(listed, list[str], "splits")]
        if not splits:
            raise ValueError("it lists no splits")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({in_one_line(error)}): save the data set again") from error
    return splits


def open_hub(name: str, split: str) -> TableSource:
    """The images of a split of a data set on the hub, fetched into `datasets`' cache if they are not there yet.

    Raises: ConnectionError if it cannot be reached or is not there; ValueError if it holds no images.
    """
    with _quiet_datasets("a data set on the hub") as datasets, _hub_errors(name):
        made = datasets.load_dataset(name, split=split)
    return TableSource(_cached(made), name, split)


def hub_splits(name: str) -> list[str]:
    """The splits of a data set on the hub.

    Raises: ConnectionError if it cannot be reached or is not there.
    """
    with _quiet_datasets("a data set on the hub") as datasets, _hub_errors(name):
        return in_order(map(str, datasets.get_dataset_split_names(name)))


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Tell all that can go wrong with the hub in one sentence."""
    try:
        yield
    except Exception as error:  # requests', huggingface_hub's and datasets' own
        raise ConnectionError(
            f"{name} does not exist here, nor can a data set of that name be had from the hub ({in_one_line(error)}): "
            "check the name and the network, or give a folder"
        ) from error


@contextmanager
def _quiet_datasets(what: str) -> Iterator[Any]:
    """The library, without its progress bars and messages.

    Raises: ValueError if it is missing.
    """
    try:
        import datasets
    except ImportError as error:
        raise missing_library(what) from error
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    quiet, verbosity = are_progress_bars_disabled(), datasets.logging.get_verbosity()
    disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it would say again what is said here in one sentence
    try:
        yield datasets
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not quiet:
            enable_progress_bars()


def _cached(made: Any) -> list[Path]:
    """The files in `datasets`' cache that a data set consists of."""
    return [Path(file["filename"]) for file in made.cache_files]


def _mapped(files: Sequence[Path]) -> "Table":
    try:
        import pyarrow
    except ImportError as error:
        raise missing_library("a table of images") from error
    tables = []
    for path in files:
        try:
            with pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))) as stream:
                table = stream.read_all()
            table.validate(full=True)  # or a cell of a damaged file may lie anywhere in memory
            tables.append(table)
        except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is no readable Arrow file ({in_one_line(error)}): save it again") from error
    try:
        return pyarrow.concat_tables(tables)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{files[0].parent}: the files differ in their columns ({in_one_line(error)})") from error


def _inside(name: str) -> str:
    """A name in a folder as it is.

    Raises: ValueError if it leads elsewhere.
    """
    if PureWindowsPath(name).name != name or not 0 < len(name) < 256:  # which knows both kinds of slashes, and drives
        raise ValueError(f"{shortened(name, 80)!r} is no name in this folder")
    return name


def _split_of(path: Path, folder: Path) -> str | None:
    stem = path.name.replace("_", "-").replace(".", "-").split("-")[0]
    inner = path.relative_to(folder).parts[:-1]
    return next((split for text in (stem, *reversed(inner)) if (split := canonical(text)) is not None), None)
