"""Data sets of the hub read as streams: images are fetched when they are asked for, in ascending order."""

import hashlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int64

from imagegpt.data.sources.base import UNLABELED, Example, ImageSource
from imagegpt.data.sources.datasets_library import quiet_datasets
from imagegpt.data.sources.hub_location import HubLocation, hub_errors
from imagegpt.data.sources.table_columns import image_column, label_column
from imagegpt.images.decoding import open_image


class StreamSource(ImageSource):
    """The images of a split of a data set, read with `streaming=True`.

    Going forward reads what is in between; going back starts the stream again.

    Args:
        hub: the data set.
        location: as the user calls it.
        split: of the data set.
    Raises: ConnectionError if the data set cannot be read; ValueError if it has no column of images.
    """

    is_sequential = True

    def __init__(self, hub: HubLocation, location: str, split: str | None) -> None:
        self._hub, self.name, self.split = hub, location, split
        with quiet_datasets("streaming a data set") as datasets:
            with hub_errors(hub.name):
                builder = datasets.load_dataset_builder(hub.name, name=hub.config, revision=hub.revision)
                stream = builder.as_streaming_dataset(split=split)
                if stream.features is None:
                    stream = stream._resolve_features()
            schema = stream.features.arrow_schema
            self._column, self._label_column = (
                image_column(schema, location, hub.column),
                label_column(schema, location),
            )
            if self._label_column is not None:
                self.classes = getattr(stream.features[self._label_column], "names", None)
            if isinstance(stream.features[self._column], datasets.Image):
                stream = stream.cast_column(self._column, datasets.Image(decode=False))  # we decode, and report errors
        self._stream = stream.select_columns([self._column, *([self._label_column] if self._label_column else [])])
        self._rows: Iterator[dict[str, Any]] = iter(())
        self._next = -1  # the index of the row that `_rows` yields next
        declared = (builder.info.splits or {}).get(split)
        self._length = declared.num_examples if declared is not None and declared.num_examples else None
        text = f"{builder.hash}\0{builder.config_id}\0{split}\0{self._column}"
        self.fingerprint = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._hub, self.name, self.split)

    def __len__(self) -> int:
        """Return the declared number of rows; without one, the stream is read once to count them."""
        if self._length is None:
            self._length = len(self.labels)
        return self._length

    def _read(self, index: int) -> Example:
        if not 0 <= self._next <= index:
            self._rows, self._next = iter(self._stream.skip(index) if index else self._stream), index
        row: dict[str, Any] | None = None
        while self._next <= index:
            row = next(self._rows, None)
            self._next += 1
        if row is None:
            raise ValueError(f"{self.name} ended before image {index}, it should have {len(self)}: try again")
        cell, name = row[self._column], f"row {index}"
        label = None if self._label_column is None else row[self._label_column]
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if content is None:
            raise ValueError(f"{name} is empty: there is no image in it")
        known = None if label is None or label < 0 else int(label)
        return Example(image=open_image(io.BytesIO(content), name), label=known, name=name)

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """See `ImageSource`; reads the stream once."""
        if self._labels is None:
            column = self._label_column or self._column
            cells = (row[column] if self._label_column else None for row in self._stream.select_columns([column]))
            self._labels = np.fromiter((UNLABELED if one is None or one < 0 else int(one) for one in cells), np.int64)
        return self._labels
