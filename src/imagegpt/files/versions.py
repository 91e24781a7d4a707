"""Files that imagegpt writes for itself: the version of their format, and reading them back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

Content = TypeVar("Content")

FORMAT_KEY = "format_version"  # in every JSON and YAML file of ours; what is written changes, the number goes up


def check_format(content: Mapping[str, Any], version: int, *, what: str, remedy: str) -> None:
    """See that a file was written in the version of its format that we read.

    Args:
        content: of the file; without `FORMAT_KEY` it is older than all versions.
        version: the one we read and write.
        what: the file, for the error: its path, mostly.
        remedy: what the user can do about another version.
    Raises: ValueError if it is another one.
    """
    found = content.get(FORMAT_KEY, "an older one")
    if type(found) is not int or found != version:
        raise ValueError(f"{what} has format version {found}, this imagegpt reads {version}: {remedy}")


def read_own(
    path: Path,
    schema: type[Content],
    version: int,
    *,
    remedy: str,
    kind: str | None = None,
    max_bytes: int | None = None,
) -> Content:
    """The content of a JSON file that imagegpt wrote, or that says so.

    Args:
        path: of the file.
        schema: as in `validate`.
        version: of its format.
        remedy: what the user can do if it is none, or of another version.
        kind: what the file must say of itself under "kind".
        max_bytes: of the file; None is what `read_json` allows.
    Raises: OSError if it cannot be read; ValueError, which names the file and ends with the remedy, if it is not such a
        file.
    """
    from imagegpt.files.schemas import (  # pydantic takes a third of a second to import
        MAX_JSON_BYTES,
        read_json,
        validate,
    )

    damaged = f"{path} was not written by imagegpt or is damaged"
    try:
        content = read_json(path, max_bytes=max_bytes or MAX_JSON_BYTES)
    except ValueError as error:
        raise ValueError(f"{damaged}: {remedy}") from error
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise ValueError(f"{damaged}: {remedy}")
    check_format(content, version, what=str(path), remedy=remedy)
    try:
        return validate(content, schema, damaged)
    except ValueError as error:
        raise ValueError(f"{error}; {remedy}") from error
