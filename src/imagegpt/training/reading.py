"""Reading recipes: finding the file, its YAML, changes to it, and one sentence for whatever is wrong."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from imagegpt.files import FORMAT_KEY, check_format
from imagegpt.training.recipes import RECIPE_FORMAT, Recipe, SplitRecipe

_SECTIONS = {name: field.type for name, field in Recipe.__dataclass_fields__.items()}

_MOVED = {"data.validation_share": "data.split.validation"}

# What pydantic says of a value of the wrong kind, by its error's type, where we can be plainer.
_KINDS = {
    "string_type": "it must be text, put it in quotes",
    "bool_type": "it must be true or false",
    "bool_parsing": "it must be true or false",
    "tuple_type": "it must be a list, in brackets",
}


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key which is given twice, and reads 3e-4 as the number it is (PyYAML wants 3.0e-4)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As in PyYAML, which silently takes the last of several values."""
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.YAMLError(f"{key.value} is given twice, in line {key.start_mark.line + 1}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_EXPONENT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def read_recipe(path: Path, changes: Iterable[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: of a YAML file.
        changes: as in "training.batch_size=16"; values are YAML.
    Raises: ValueError, in one sentence that names the field, for anything that cannot be; OSError for a file that
        cannot be read.
    """
    return recipe_from_text(path.read_bytes(), str(path), changes)


def recipe_from_text(text: bytes | str, what: str, changes: Iterable[str] = ()) -> Recipe:
    """A recipe from its YAML.

    Args:
        text: as `Recipe.resolved` or people write it; bytes are UTF-8.
        what: where it is from, for the error.
        changes: as in `read_recipe`.
    Raises: ValueError as `read_recipe`.
    """
    try:
        content = _parse_yaml(text if isinstance(text, str) else text.decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{what} is no YAML ({' '.join(str(error).split())}): check it") from error
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
    return yaml.load(text, _Loader)


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
    except yaml.YAMLError as error:
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
    field = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
    given, kind = first.get("input"), first["type"]
    if field in _MOVED:
        return f"there is no {field} in a recipe any more: give {_MOVED[field]}"
    if kind == "unexpected_keyword_argument":
        section = field.rpartition(".")[0]
        return f"there is no {field} in a recipe: {section or 'a recipe'} has {', '.join(_fields(section))}"
    if kind == "missing":
        return f"{field} is missing from the recipe: give it"
    if kind == "value_error":
        told = str(first.get("ctx", {}).get("error"))
        # The checks of a section name its fields themselves; that of a value knows not whose it is.
        return f"{field} is {given!r}: {told}" if told.startswith("it must") else told
    if kind == "dataclass_type":
        return f"{field} is {given!r}: it must be a section with {', '.join(_fields(field))}"
    reason = first["msg"][0].lower() + first["msg"][1:]
    return f"{field} is {given!r}: {_KINDS.get(kind, reason.replace('input should', 'it must'))}"


def _fields(section: str = "") -> list[str]:
    kind: Any = SplitRecipe if section == "data.split" else _SECTIONS.get(section, Recipe)
    return list(kind.__dataclass_fields__)
