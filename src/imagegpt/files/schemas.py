"""Reading JSON that others may have written or damaged: a limit, a schema, and one sentence for whatever is wrong.

Every JSON file is read here. `read_json` bounds what is read and parsed; `validate` checks the content against a type,
mostly a dataclass or a `TypedDict`, with pydantic. Both raise `ValueError` with the file, the field, what was found and
what is allowed; the caller says what to do about it, since that depends on the file.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from imagegpt.common.text import printable, shortened

Content = TypeVar("Content")

MAX_JSON_BYTES = 16 * 2**20  # the largest of ours, the manifest of an encoding with its broken pictures, stays under it
MAX_DEPTH = 64  # of lists and objects in each other; what copies or prints them later would need as many calls

# What pydantic says of a value of the wrong kind, by its error's type, where we can be plainer.
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
    """The content of a JSON file.

    Args:
        path: of the file.
        max_bytes: a larger file is not read at all.
    Raises: OSError if it cannot be read; ValueError, which names the file, if it is too large or not JSON.
    """
    with path.open("rb") as file:
        text = file.read(max_bytes + 1)
    return parse_json(text, str(path), max_bytes=max_bytes)


def parse_json(text: str | bytes, what: str, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The content of JSON that is in memory already.

    Args:
        text: the JSON; bytes are UTF-8.
        what: where it is from, for the error.
        max_bytes: how long it may be.
    Raises: ValueError, which begins with `what`, if it is too long, nested too deeply or not JSON.
    """
    if len(text) > max_bytes:
        raise ValueError(f"{what} has more than {max_bytes:,} bytes, which is too large for such a file")
    try:
        content = json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{what} is not JSON ({printable(str(error))})") from None
    if _is_deeper(content, MAX_DEPTH):
        raise ValueError(f"{what} is nested too deeply")
    return content


def validate(content: Any, schema: type[Content], what: str) -> Content:
    """Check content against a schema.

    Args:
        content: as `read_json` gives it.
        schema: the type it must have, by pydantic's ordinary rules. They take "1" for a number: annotate numbers with
            `common.number_fields.Within`, or pydantic's strict types. Keys that the schema does not name are ignored.
        what: where the content is from, for the error; empty where the caller says it.
    Returns: the content as that type.
    Raises: ValueError, which begins with `what` and names the field, what was found and what is allowed.
    """
    try:
        return _adapter(schema).validate_python(content)
    except ValidationError as error:
        raise ValueError(f"{what}: {first_complaint(error)}".removeprefix(": ")) from None


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Have the ValueErrors of a block begin with the file or folder they are about, unless they name it already."""
    try:
        yield
    except ValueError as error:
        if what in str(error):
            raise
        raise ValueError(f"{what}: {error}") from None


def first_complaint(error: ValidationError, reasons: Mapping[str, str] | None = None) -> str:
    """The first complaint of pydantic in our form: the field, what was found, what is allowed.

    Args:
        error: of pydantic.
        reasons: what is said of its types of error in other words than usual.
    """
    first = error.errors(include_url=False)[0]
    field = shortened(printable(".".join(str(part) for part in first["loc"])), 80)
    kind, found = first["type"], first.get("input")
    reason = str(first.get("ctx", {}).get("error")) if kind == "value_error" else first["msg"]
    reason = {**_REASONS, **(reasons or {})}.get(kind, reason[0].lower() + reason[1:]).replace(
        "input should", "it must"
    )
    if kind == "missing":
        return f"{field} is missing"
    return f"{field or 'the content'} is {_shortened(found)}: {reason}"


def _is_deeper(content: Any, depth: int) -> bool:
    """Whether lists and objects lie in each other more than `depth` times."""
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
    """A value as it may stand in a sentence, whatever its size."""
    if isinstance(value, dict | list) and len(value) > 4:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value):,} entries"
    text = f"{value!r}" if not isinstance(value, str) else f"{value[:80]!r}"
    return text if len(text) <= 80 else f"{text[:77]}..."


@cache
def _adapter(schema: type[Content]) -> TypeAdapter[Content]:
    """Built once a schema: pydantic takes a millisecond or more for each."""
    return TypeAdapter(schema)
