"""Format the commands that we suggest to a user, so that they can be pasted into a shell."""

import itertools
import json
import re
import shlex
from pathlib import Path

from imagegpt.common.text import surrogate_byte

_PLAIN_YAML = re.compile(r"\.{0,2}/[\w./-]*")  # paths that need no quotes in YAML


def shell_command(*words: str | Path) -> str:
    """Format an `imagegpt` command; paths are written as by `explicit_path`, everything is quoted where necessary."""
    texts = ["imagegpt", *(explicit_path(word) if isinstance(word, Path) else word for word in words)]
    return " ".join(map(_shell_quoted, texts))


def explicit_path(path: Path) -> str:
    """Format a path so that it cannot be mistaken for a model, a data set or an option: `./digits`, not `digits`."""
    return str(path) if path.is_absolute() or path.parts[:1] in (("..",), ()) else f"./{path}"


def override(key: str, path: Path) -> str:
    """Format the argument of `--set`, which is parsed as YAML, that sets a key of a recipe to a path."""
    text = explicit_path(path)
    return f"{key}={text if _PLAIN_YAML.fullmatch(text) else _yaml_quoted(text)}"


def unused_path(name: str) -> Path:
    """Return a path in the current folder that does not exist yet: `model`, or else `model-2`, `model-3` ..."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for path in map(Path, names) if not path.exists())


def _yaml_quoted(text: str) -> str:
    """Put text in double quotes, without what JSON allows and YAML does not: invisible characters, surrogate pairs."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(one if one.isprintable() else f"\\U{ord(one):08x}" for one in quoted)


def _shell_quoted(word: str) -> str:
    """Quote a word for the shell; unprintable characters need `$'...'`, which bash, zsh and ksh understand."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(map(_escaped, word)) + "'"


def _escaped(character: str) -> str:
    """Escape a character within `$'...'`."""
    if character.isprintable():
        return f"\\{character}" if character in "\\'" else character
    byte = surrogate_byte(character)
    # Octal, because it ends after three digits; \x would swallow hexadecimal digits that follow.
    return "".join(f"\\{one:03o}" for one in (character.encode() if byte is None else (byte,)))
