"""Commands that are suggested to a user: they can be pasted into a shell, and mean the thing that was just made."""

import itertools
import json
import re
import shlex
from pathlib import Path

from imagegpt.common.text import undecodable_byte

_PLAIN_YAML = re.compile(r"\.{0,2}/[\w./-]*")  # a path that YAML reads as the text it is


def command(*words: str | Path) -> str:
    """A command of ours as it is typed; paths are written by `place`."""
    return " ".join(map(_quoted, ["imagegpt", *(place(word) if isinstance(word, Path) else word for word in words)]))


def place(path: Path) -> str:
    """A path that cannot be taken for the name of a model, a data set or an option: `./digits`, not `digits`."""
    return str(path) if path.is_absolute() or path.parts[:1] in (("..",), ()) else f"./{path}"


def setting(key: str, path: Path) -> str:
    """A recipe's key with a path, for `--set`, which reads YAML."""
    text = place(path)
    return f"{key}={text if _PLAIN_YAML.fullmatch(text) else _yaml_quoted(text)}"


def free_name(name: str) -> Path:
    """A name in the current folder that nothing has yet: `model`, or else `model-2`, `model-3` ..."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for path in map(Path, names) if not path.exists())


def _yaml_quoted(text: str) -> str:
    """The text in double quotes; YAML takes no character without a visible form, and no surrogate pairs of JSON's."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(one if one.isprintable() else f"\\U{ord(one):08x}" for one in quoted)


def _quoted(word: str) -> str:
    """A word as a shell reads it; what has no visible form is written in `$'...'`, which bash, zsh and ksh know."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(map(_escaped, word)) + "'"


def _escaped(character: str) -> str:
    """A character within `$'...'`."""
    if character.isprintable():
        return f"\\{character}" if character in "\\'" else character
    byte = undecodable_byte(character)
    # Three octal digits end by themselves; \x would read on into the next letters.
    return "".join(f"\\{one:03o}" for one in (character.encode() if byte is None else (byte,)))
