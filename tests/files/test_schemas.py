import re
from dataclasses import dataclass, field
from typing import Annotated

import pytest

from imagegpt.common import ranges
from imagegpt.common.pydantic_ranges import InRange
from imagegpt.files.schemas import parse_json, prefix_errors, read_json, validate


@dataclass(frozen=True)
class Inner:
    name: str


@dataclass(frozen=True)
class Outer:
    count: Annotated[int, InRange(ranges.IntRange(min=1, max=9))]
    inner: list[Inner] = field(default_factory=list)


def test_validate_converts_content_to_the_schema_type():
    found = validate({"count": 3, "inner": [{"name": "a"}], "unknown": 1}, Outer, "the file")
    assert found == Outer(count=3, inner=[Inner(name="a")])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"count": 10}, "the file: count is 10: it must be an integer from 1 to 9"),
        ({"count": True}, "the file: count is True: it must be an integer from 1 to 9"),
        ({"count": "x" * 1000}, f"the file: count is '{'x' * 76}...: it must be an integer from 1 to 9"),
        ({}, "the file: count is missing"),
        ({"count": 1, "inner": [{"name": "a"}, {"name": 3}]}, "the file: inner.1.name is 3: it must be text"),
        ({"count": 1, "inner": {}}, "the file: inner is {}: it must be a list, in brackets"),
        ([1, 2, 3, 4, 5], "the file: the content is a list of 5 entries: it must be an object, in braces"),
    ],
)
def test_invalid_content_is_one_sentence_naming_the_field(content, complaint):
    with pytest.raises(ValueError, match=f"^{re.escape(complaint)}$"):
        validate(content, Outer, "the file")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b'{"a": 1', "is not JSON"),
        (b'\xff\xfe{"a": 1}', "is not JSON"),
        (b"[" * 200_000, "is nested too deeply"),
        (b"1" * 5_000, "is not JSON"),  # more digits than Python turns into a number
        (b" " * 1_000 + b"1", None),
    ],
)
def test_invalid_json_is_one_sentence_naming_the_file(tmp_path, text, complaint):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    if complaint is None:
        assert read_json(path) == 1
        return
    with pytest.raises(ValueError, match=complaint) as error:
        read_json(path)
    assert str(error.value).startswith(str(path))


def test_prefix_errors_adds_the_name_once():
    for message in ("it is wrong", "a.json: it is wrong"):
        with pytest.raises(ValueError, match=r"^a.json: it is wrong$"), prefix_errors("a.json"):
            raise ValueError(message)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a": ', "}")])
def test_deeply_nested_json_is_refused(opening, closing):
    with pytest.raises(ValueError, match=r"^the text is nested too deeply$"):
        parse_json(opening * 66 + "1" + closing * 66, "the text")
    parse_json(opening * 64 + "1" + closing * 64, "the text")


def test_files_over_the_size_limit_are_not_read(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # a terabyte of zeros, none of it on the disk
    with pytest.raises(ValueError, match=r"has more than 16,777,216 bytes, which is too large for such a file"):
        read_json(path)
    with pytest.raises(ValueError, match="has more than 4 bytes"):
        parse_json("12345", "the text", max_bytes=4)
