"""Format versions of the files that imagegpt writes for its own use."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

Content = TypeVar("Content")

FORMAT_KEY = "format_version"  # in all our JSON and YAML files; incremented when the format changes


def check_format_version(content: Mapping[str, Any], version: int, *, what: str, remedy: str) -> None:
    """Check the format version of a file.

    Args:
        content: of the file; without `FORMAT_KEY` it predates format versions.
        what: the file, for the error message, usually its path.
    Raises: ValueError if the file has another version.
    """
    found = content.get(FORMAT_KEY, "an older one")
    if type(found) is not int or found != version:
        raise ValueError(f"{what} has format version {found}, this imagegpt reads {version}: {remedy}")


def read_versioned_json(
    path: Path,
    schema: type[Content],
    version: int,
    *,
    remedy: str,
    kind: str | None = None,
    max_bytes: int | None = None,
) -> Content:
    """Read and validate a JSON file that imagegpt wrote.

    Args:
        schema: see `validate`.
        remedy: what the user can do if it is invalid or has another version; ends the error message.
        kind: value that its key "kind" must have.
        max_bytes: maximum size; None means the default of `read_json`.
    Raises: OSError if it cannot be read; ValueError, naming the file, if it is invalid.
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
    check_format_version(content, version, what=str(path), remedy=remedy)
    try:
        return validate(content, schema, damaged)
    except ValueError as error:
        raise ValueError(f"{error}; {remedy}") from error
