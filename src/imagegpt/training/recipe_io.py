"""Reading recipes: finding the file, its YAML, changes to it, and one sentence for whatever is wrong."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from imagegpt.common.text import printable, shortened
from imagegpt.files.schemas import first_complaint
from imagegpt.files.versions import FORMAT_KEY, check_format
from imagegpt.training.recipe import RECIPE_FORMAT, Recipe, SplitRecipe

_SECTIONS = {name: field.type for name, field in Recipe.__dataclass_fields__.items()}

_MOVED = {"data.validation_share": "data.split.validation"}
_QUOTED = "it must be text, put it in quotes"

_MAX_BYTES = 1 << 16  # of a recipe; those that ship have 2,000
_MAX_DEPTH = 20  # of sections and lists in each other, of which recipes have three
_MAX_BITS = 1 << 10  # of a whole number: Python takes seconds for those with millions, and does not print them


class _Loader(yaml.SafeLoader):
    """YAML with less in it than PyYAML allows, and more numbers.

    A key that is given twice and an alias are refused, the latter because a few lines of them stand for gigabytes. What
    looks like a number is one: 3e-4, too, for which PyYAML wants 3.0e-4.
    """

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As in PyYAML, which follows aliases, and nested lists until it runs out of stack."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise _error(f"*{event.anchor} stands for something else, which recipes cannot: write it out", event)
        if self._depth > _MAX_DEPTH:
            raise _error("it is nested too deeply", self.peek_event())
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As in PyYAML, which silently takes the last of several values."""
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise _error(f"{key.value} is given twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """As in PyYAML, which lets any error through that a value causes which is not as its tag says."""
        try:
            value = super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError):
            raise _error(f"{shortened(str(node.value), 40)!r} is no {node.tag.rpartition(':')[2]}", node) from None
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise _error("a number has too many digits", node)
        return value


# No two parts of it match the same digits: it would take minutes for a long row of them.
_EXPONENT = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def _error(problem: str, where: yaml.Node | yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


def read_recipe(path: Path, changes: Iterable[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: of a YAML file.
        changes: as in "training.batch_size=16"; values are YAML.
    Raises: ValueError, in one sentence that names the field, for anything that cannot be; OSError for a file that
        cannot be read.
    """
    with path.open("rb") as file:
        return recipe_from_text(file.read(_MAX_BYTES + 1), str(path), changes)


def recipe_from_text(text: bytes | str, what: str, changes: Iterable[str] = ()) -> Recipe:
    """A recipe from its YAML.

    Args:
        text: as `Recipe.resolved` or people write it; bytes are UTF-8.
        what: where it is from, for the error.
        changes: as in `read_recipe`.
    Raises: ValueError as `read_recipe`.
    """
    if len(text) > _MAX_BYTES:
        raise ValueError(f"{what} has more than {_MAX_BYTES:,} bytes: it is no recipe")
    try:
        content = _parse_yaml(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"{what} is no YAML (it is not UTF-8): check it, or save it as UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{what} is no YAML ({error}): check it") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{what} holds no recipe: it must have the keys {', '.join(_fields())}")
    if FORMAT_KEY in content:  # those that people write need not have one
        check_format(content, RECIPE_FORMAT, what=what, remedy="take the imagegpt that wrote it")
        content = {name: value for name, value in content.items() if name != FORMAT_KEY}
    for change in changes:
        _apply(content, change)
    return parse_recipe(content)


def parse_recipe(content: dict[str, Any]) -> Recipe:
    """A recipe from nested dictionaries.

    Raises: as `read_recipe`.
    """
    # An empty section is one without changes; its fields may still be missing.
    content = {name: {} if value is None else value for name, value in content.items()}
    try:
        return TypeAdapter(Recipe).validate_python(content)
    except ValidationError as error:
        raise ValueError(_sentence(error)) from None


def _parse_yaml(text: str) -> Any:
    """What YAML stands for.

    Raises: ValueError, in a few words that name the line, if it is none, or holds what recipes may not.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", in line {error.problem_mark.line + 1}"
        raise ValueError(f"{shortened(printable(str(error.problem or error.context)), 200)}{line}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _apply(content: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        raise ValueError(f"--set {change} is no change: write key=value, for example training.batch_size=16")
    if not (len(names) == 2 or (names[:2] == ["data", "split"] and len(names) == 3)) or names[0] not in _SECTIONS:
        raise ValueError(
            f"--set {change}: {key} is no key of a recipe, write section.key=value; the sections are "
            f"{', '.join(_SECTIONS)}"
        )
    try:
        value = _parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"--set {change}: {text!r} is no YAML value, put it in quotes") from error
    there: Any = content
    for section in names[:-1]:
        if isinstance(there, dict) and there.get(section) is None:
            there[section] = {}
        there = there.get(section) if isinstance(there, dict) else None
    if isinstance(there, dict):  # if not, the recipe is refused for that
        there[names[-1]] = value


def _sentence(error: ValidationError) -> str:
    """The first complaint about a recipe, as one sentence that names the field."""
    first = error.errors()[0]
    field = shortened(printable(".".join(str(part) for part in first["loc"] if not isinstance(part, int))), 80)
    kind = first["type"]
    if field in _MOVED:
        return f"there is no {field} in a recipe any more: give {_MOVED[field]}"
    if kind == "unexpected_keyword_argument":
        section = field.rpartition(".")[0]
        return f"there is no {field} in a recipe: {section or 'a recipe'} has {', '.join(_fields(section))}"
    if kind == "missing":
        return f"{field} is missing from the recipe: give it"
    told = str(first.get("ctx", {}).get("error"))
    if kind == "value_error" and not told.startswith("it must"):
        return told  # the checks of a section name its fields themselves; that of a value knows not whose it is
    reasons = {"dataclass_type": f"it must be a section with {', '.join(_fields(field))}", "string_type": _QUOTED}
    return first_complaint(error, reasons)


def _fields(section: str = "") -> list[str]:
    kind: Any = SplitRecipe if section == "data.split" else _SECTIONS.get(section, Recipe)
    return list(kind.__dataclass_fields__)
