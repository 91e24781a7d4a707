"""What a user says to name a data set on the Hugging Face Hub, and the errors of opening it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Self
from urllib.parse import parse_qsl

from imagegpt.data.sources.base import in_one_line

PREFIX = "hub:"
_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}


@dataclass(frozen=True, kw_only=True)
class HubLocation:
    """A data set on the hub, or a folder in the hub's format.

    Attributes:
        name: "owner/name", or the path of the folder.
        config: the configuration of the data set; None for its only or default one.
        revision: branch, tag or commit; None for the main branch.
        column: with the images; None for the only such column, or one with a usual name.
        streaming: read from the hub when needed instead of downloading first.
    """

    name: str
    config: str | None = None
    revision: str | None = None
    column: str | None = None
    streaming: bool = False

    @classmethod
    def parse(cls, location: str) -> Self:
        """Parse a location, see `imagegpt.data.sources.hub`.

        Raises: ValueError if an option is unknown, repeated or empty.
        """
        name, _, query = location.removeprefix(PREFIX).partition("?")
        known = [field.name for field in fields(cls) if field.name != "name"]
        options: dict[str, Any] = {}
        for key, value in parse_qsl(query, keep_blank_values=True):
            if key not in known or key in options or not value:
                problem = "unknown" if key not in known else "given twice" if key in options else "empty"
                raise ValueError(f"{location} has the option {key!r}, which is {problem}: give {', '.join(known)}")
            options[key] = value
        if "streaming" in options:
            if options["streaming"] not in _BOOLEANS:
                raise ValueError(f"{location} has streaming={options['streaming']}: give streaming=1 or streaming=0")
            options["streaming"] = _BOOLEANS[options["streaming"]]
        return cls(name=name, **options)


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Report whatever goes wrong with the hub in one sentence."""
    try:
        yield
    except Exception as error:  # of requests, huggingface_hub and datasets
        raise ConnectionError(
            f"{name} does not exist here, and a data set of that name cannot be loaded from the hub "
            f"({in_one_line(error)}): check the name and the network, or give a folder"
        ) from error
