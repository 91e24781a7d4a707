"""Images as files inside tables: Arrow files, into which `datasets` converts parquet, tars and data sets of the hub.

The Arrow files are memory-mapped. A cell holds the content of an image file, as on the hub; we decode it ourselves,
since `datasets` would stop at the first broken one.
"""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from imagegpt.common.text import printable, truncate
from imagegpt.data.sources.base import UNLABELED, Example, ImageSource, in_one_line, missing_library
from imagegpt.data.sources.table_columns import class_names, image_column, label_column, without_bytes
from imagegpt.images.decoding import open_image

if TYPE_CHECKING:
    from pyarrow import ChunkedArray, Table

_MAX_LABEL = (1 << 31) - 1


class TableSource(ImageSource):
    """The images in Arrow files.

    Args:
        files: in Arrow's streaming format, all with the same columns.
        name: as the user calls the source.
        split: which of its splits this is; None if it has none.
        origins: the user's files that these were converted from; none if these are the user's own.
        column: with the images; None to find it.
    Raises: ValueError if a file is damaged, or `image_column` and `label_column` do not accept the columns.
    """

    def __init__(
        self,
        files: Sequence[Path],
        name: str,
        split: str | None,
        origins: Sequence[Path] = (),
        column: str | None = None,
    ) -> None:
        self._files, self.name, self.split, self._origins = list(files), name, split, list(origins)
        self._given_column = column
        table = _mapped(self._files) if self._files else None
        if not table:
            raise ValueError(f"{name} has no rows: give a source with images")
        self._images = table.column(image_column(table.schema, name, column))
        label = label_column(table.schema, name)
        self._labels = None if label is None else _label_array(table.column(label))
        self.classes = None if label is None else class_names(table.schema, label)
        highest = -1 if self._labels is None else int(self._labels.max())
        if highest > (_MAX_LABEL if self.classes is None else len(self.classes) - 1):
            raise ValueError(f"{name} has the label {highest}, which is no class: save the data set again")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._files, self.name, self.split, self._origins, self._given_column)

    def __len__(self) -> int:
        return len(self._images)

    def _read(self, index: int) -> Example:
        cell = self._images[index].as_py()
        content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        name = f"row {index}" if path is None else f"row {index} ({truncate(printable(path), 80)})"
        if content is not None:
            return Example(image=open_image(io.BytesIO(content), name), label=self._label(index), name=name)
        if path is None:
            raise ValueError(f"{name} is empty: there is no image in it")
        if not Path(path).is_file():
            raise FileNotFoundError(f"{name} names a file that is not there: get the data set with its files")
        return Example(image=Path(path), label=self._label(index), name=name)

    def files(self) -> Iterable[Path]:
        """See `ImageSource`; includes files that the table refers to by their path."""
        yield from self._origins or self._files
        if self._images.type.num_fields:  # structures of bytes and path
            for row in self._images.filter(without_bytes(self._images)).to_pylist():
                path = None if row is None else row.get("path")
                if path is not None and Path(path).is_file():  # a device could be read without end
                    yield Path(path)


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
            table.validate(full=True)  # otherwise a cell of a damaged file may point anywhere in memory
            tables.append(table)
        except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is no readable Arrow file ({in_one_line(error)}): save it again") from error
    try:
        return pyarrow.concat_tables(tables)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{files[0].parent}: the files differ in their columns ({in_one_line(error)})") from error


def _label_array(column: "ChunkedArray") -> Int64[np.ndarray, " n"]:
    """Return labels as an array, -1 for cells that are empty or negative; labels that are too high stay so."""
    import pyarrow

    filled = column.fill_null(0 if pyarrow.types.is_unsigned_integer(column.type) else UNLABELED).to_numpy()
    return np.where(column.is_null().to_numpy(), UNLABELED, np.clip(filled, UNLABELED, _MAX_LABEL + 1)).astype(np.int64)
