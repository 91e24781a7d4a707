"""Read recipes from YAML: parse it strictly, apply overrides, and explain in one sentence what is wrong with it."""

import re
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from imagegpt.common.text import printable, truncate
from imagegpt.data.recipe import SplitRecipe
from imagegpt.files.versions import FORMAT_KEY, check_format_version
from imagegpt.training.objectives import Objective
from imagegpt.training.recipe import RECIPE_FORMAT, Recipe
from imagegpt.training.recipe_fields import describe_validation_error

_SECTIONS = {name: field.type for name, field in Recipe.__dataclass_fields__.items()}

_MAX_BYTES = 1 << 16  # of a recipe; the bundled ones have 2,000
_MAX_DEPTH = 20  # of nested sections and lists; recipes have three levels
_MAX_BITS = 1 << 10  # of an integer: with millions of digits Python takes seconds, and refuses to print them


class _Loader(yaml.SafeLoader):
    """A YAML loader that is stricter than PyYAML's, and reads 3e-4 as a number, which PyYAML wants as 3.0e-4.

    It refuses duplicate keys, and aliases, a few lines of which can expand to gigabytes.
    """

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse aliases, and nesting that would exhaust the stack."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise _error(f"*{event.anchor} is an alias, which recipes cannot have: write the value out", event)
        if self._depth > _MAX_DEPTH:
            raise _error("it is nested too deeply", self.peek_event())
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse duplicate keys, of which PyYAML silently takes the last."""
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise _error(f"{key.value} is given twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Turn the errors of all kinds that PyYAML raises for values that do not match their tag into YAML errors."""
        try:
            value = super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError):
            raise _error(f"{truncate(str(node.value), 40)!r} is no {node.tag.rpartition(':')[2]}", node) from None
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise _error("a number has too many digits", node)
        return value


# No two groups match the same digits: backtracking over many digits would take minutes.
_EXPONENT = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def _error(problem: str, where: yaml.Node | yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


def read_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: of a YAML file.
        overrides: such as "training.batch_size=16"; values are YAML.
    Raises: ValueError, in one sentence that names the field, for an invalid recipe; OSError for a file that cannot be
        read.
    """
    with path.open("rb") as file:
        return parse_recipe_yaml(file.read(_MAX_BYTES + 1), str(path), overrides)


def parse_recipe_yaml(text: bytes | str, what: str, overrides: Iterable[str] = ()) -> Recipe:
    """Parse a recipe from its YAML.

    Args:
        text: as `Recipe.to_yaml` or people write it; bytes are UTF-8.
        what: where it comes from, for error messages.
        overrides: as for `read_recipe`.
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
    if FORMAT_KEY in content:  # optional in recipes that people write
        check_format_version(content, RECIPE_FORMAT, what=what, remedy="take the imagegpt that wrote it")
        content = {name: value for name, value in content.items() if name != FORMAT_KEY}
    return parse_recipe(content, overrides)


def parse_recipe(content: dict[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """Parse a recipe from nested dictionaries, which are not changed.

    Raises: as `read_recipe`.
    """
    content = deepcopy(content)
    for override in overrides:
        _apply_override(content, override)
    # An empty section has all defaults; required fields may still be missing.
    content = {name: {} if value is None else value for name, value in content.items()}
    try:
        return TypeAdapter(Recipe).validate_python(content)
    except ValidationError as error:
        raise ValueError(describe_validation_error(error, "a recipe", _fields)) from None


def _parse_yaml(text: str) -> Any:
    """Parse YAML into Python values.

    Raises: ValueError, in a few words that name the line, if it is invalid, or has what recipes may not have.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", in line {error.problem_mark.line + 1}"
        raise ValueError(f"{truncate(printable(str(error.problem or error.context)), 200)}{line}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _apply_override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        raise ValueError(f"--set {override} is no change: write key=value, for example training.batch_size=16")
    if not (len(names) == 2 or (names[:2] == ["data", "split"] and len(names) == 3)) or names[0] not in _SECTIONS:
        raise ValueError(
            f"--set {override}: {key} is no key of a recipe, write section.key=value; the sections are "
            f"{', '.join(_SECTIONS)}"
        )
    try:
        value = _parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"--set {override}: {text!r} is no YAML value, put it in quotes") from error
    section: Any = content
    for name in names[:-1]:
        if isinstance(section, dict) and section.get(name) is None:
            section[name] = {}
        section = section.get(name) if isinstance(section, dict) else None
    if isinstance(section, dict):  # anything else is refused when the recipe is validated
        section[names[-1]] = value


def _fields(section: str = "") -> list[str]:
    """The fields of a section, or the sections of a recipe."""
    kind: Any = SplitRecipe if section == "data.split" else _SECTIONS.get(section, Recipe)
    return ["name"] if kind is Objective else list(getattr(kind, "__dataclass_fields__", Recipe.__dataclass_fields__))
