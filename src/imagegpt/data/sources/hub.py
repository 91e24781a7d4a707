"""Data sets on the Hugging Face Hub, and local folders in the hub's format, read by `datasets`.

    owner/name
    hub:owner/name?config=large&revision=v1.2&column=photo&streaming=1
    hub:/data/mirror/name?config=large

No code of a data set is ever run: `datasets` has no loading scripts any more. Downloads go into its cache, as Arrow
files; streaming reads images from the hub when they are asked for and stores nothing.
"""

import re
from pathlib import Path

from imagegpt.data.sources.base import ImageSource, SourceFormat
from imagegpt.data.sources.datasets_library import cached_files, quiet_datasets
from imagegpt.data.sources.hub_location import PREFIX, HubLocation, hub_errors
from imagegpt.data.sources.streams import StreamSource
from imagegpt.data.sources.tables import TableSource
from imagegpt.data.splits import in_order

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE_SUFFIXES = (".npy", ".npz", ".parquet", ".bin", ".png", ".jpg", ".jpeg", ".zip", ".tar")  # no data set ends so


class HubFormat(SourceFormat):
    """A name on the hub, or anything with the prefix "hub:"."""

    description = "owner/name on the hub"

    def matches(self, location: str) -> bool:
        """See `SourceFormat`; `photos/traim` beside `photos/train` is a path that was mistyped."""
        name = location.partition("?")[0]
        if location.startswith(PREFIX):
            return True
        is_name = _NAME.fullmatch(name) is not None and ".." not in name and not name.lower().endswith(_FILE_SUFFIXES)
        return is_name and not Path(name).exists() and not Path(Path(name).parts[0]).exists()

    def splits(self, location: str) -> list[str]:
        """See `SourceFormat`.

        Raises: ConnectionError if the hub cannot be reached or has no such data set.
        """
        hub = HubLocation.parse(location)
        with quiet_datasets("a data set on the hub") as datasets, hub_errors(hub.name):
            names = datasets.get_dataset_split_names(hub.name, config_name=hub.config, revision=hub.revision)
            return in_order(map(str, names))

    def open(self, location: str, split: str | None) -> ImageSource:
        """See `SourceFormat`.

        Raises: ConnectionError if the hub cannot be reached or has no such data set; ValueError if it has no images.
        """
        hub = HubLocation.parse(location)
        if hub.streaming:
            return StreamSource(hub, location, split)
        with quiet_datasets("a data set on the hub") as datasets, hub_errors(hub.name):
            dataset = datasets.load_dataset(hub.name, name=hub.config, revision=hub.revision, split=split)
        return TableSource(cached_files(dataset), location, split, column=hub.column)
