"""Read and validate JSON from untrusted or damaged files.

Every JSON file is read here. `read_json` limits size and nesting; `validate` checks the content against a type, usually
a dataclass or a `TypedDict`, with pydantic. Both raise ValueError with the file, the field, the value and what is
allowed; the caller adds what to do, which depends on the file.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from imagegpt.common.text import printable, truncate

Content = TypeVar("Content")

MAX_JSON_BYTES = 16 * 2**20  # more than our largest: the manifest of an encoding with many unreadable images
MAX_DEPTH = 64  # of nested lists and objects; code that copies or prints them later recurses as deeply

# Plainer messages than pydantic's own, by its error type.
_REASONS = {
    "string_type": "it must be text",
    "bool_type": "it must be true or false",
    "bool_parsing": "it must be true or false",
    "missing": "it is missing",
    "dict_type": "it must be an object, in braces",
    "dataclass_type": "it must be an object, in braces",
    "model_type": "it must be an object, in braces",
    "list_type": "it must be a list, in brackets",
    "tuple_type": "it must be a list, in brackets",
}


def read_json(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file.

    Args:
        max_bytes: larger files are refused without reading them.
    Raises: OSError if it cannot be read; ValueError, naming the file, if it is too large or not JSON.
    """
    with path.open("rb") as file:
        text = file.read(max_bytes + 1)
    return parse_json(text, str(path), max_bytes=max_bytes)


def parse_json(text: str | bytes, what: str, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Parse JSON.

    Args:
        text: the JSON; bytes are UTF-8.
        what: the source of the text; error messages begin with it.
    Raises: ValueError if it is too long, nested too deeply or not JSON.
    """
    if len(text) > max_bytes:
        raise ValueError(f"{what} has more than {max_bytes:,} bytes, which is too large for such a file")
    try:
        content = json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{what} is not JSON ({printable(str(error))})") from None
    if _is_nested_deeper(content, MAX_DEPTH):
        raise ValueError(f"{what} is nested too deeply")
    return content


def validate(content: Any, schema: type[Content], what: str) -> Content:
    """Check content against a schema.

    Args:
        content: as returned by `read_json`.
        schema: the required type, in pydantic's lax mode. That mode accepts "1" as a number: annotate numbers with
            `common.pydantic_ranges.InRange` or a strict type of pydantic's. Keys not in the schema are ignored.
        what: the source of the content; error messages begin with it. "" if the caller adds it.
    Returns: the content converted to that type.
    Raises: ValueError, naming the field, its value and what is allowed.
    """
    try:
        return _adapter(schema).validate_python(content)
    except ValidationError as error:
        raise ValueError(f"{what}: {format_validation_error(error)}".removeprefix(": ")) from None


@contextmanager
def prefix_errors(what: str) -> Iterator[None]:
    """Prefix the ValueErrors of a `with` block with a file or folder, unless they mention it already."""
    try:
        yield
    except ValueError as error:
        if what in str(error):
            raise
        raise ValueError(f"{what}: {error}") from None


def format_validation_error(error: ValidationError, reasons: Mapping[str, str] | None = None) -> str:
    """Format the first error of a validation in our form: the field, its value, what is allowed.

    Args:
        reasons: error type of pydantic's -> message that replaces the usual one.
    """
    first = error.errors(include_url=False)[0]
    field = truncate(printable(".".join(str(part) for part in first["loc"])), 80)
    kind, found = first["type"], first.get("input")
    reason = str(first.get("ctx", {}).get("error")) if kind == "value_error" else first["msg"]
    reason = {**_REASONS, **(reasons or {})}.get(kind, reason[0].lower() + reason[1:]).replace(
        "input should", "it must"
    )
    if kind == "missing":
        return f"{field} is missing"
    return f"{field or 'the content'} is {_shortened(found)}: {reason}"


def _is_nested_deeper(content: Any, depth: int) -> bool:
    """Whether lists and objects are nested more than `depth` levels deep."""
    level = [content]
    for _ in range(depth + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


def _shortened(value: Any) -> str:
    """Format a value for an error message, cut off if it is long."""
    if isinstance(value, dict | list) and len(value) > 4:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value):,} entries"
    text = f"{value!r}" if not isinstance(value, str) else f"{value[:80]!r}"
    return text if len(text) <= 80 else f"{text[:77]}..."


@cache
def _adapter(schema: type[Content]) -> TypeAdapter[Content]:
    """Build the adapter of a schema once: it takes pydantic a millisecond or more."""
    return TypeAdapter(schema)
