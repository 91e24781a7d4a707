"""Commands that are suggested to a user: they can be pasted into a shell, and mean the thing that was just made."""

import itertools
import json
import re
import shlex
from pathlib import Path

_PLAIN_YAML = re.compile(r"\.{0,2}/[\w./-]*")  # a path that YAML reads as the text it is


def command(*words: str | Path) -> str:
    """A command of ours as it is typed; paths are written by `place`."""
    return shlex.join(["imagegpt", *(place(word) if isinstance(word, Path) else word for word in words)])


def place(path: Path) -> str:
    """A path that cannot be taken for the name of a model, a data set or an option: `./digits`, not `digits`."""
    return str(path) if path.is_absolute() or path.parts[:1] in (("..",), ()) else f"./{path}"


def setting(key: str, path: Path) -> str:
    """A recipe's key with a path, for `--set`, which reads YAML."""
    text = place(path)
    return f"{key}={text if _PLAIN_YAML.fullmatch(text) else json.dumps(text)}"


def free_name(name: str) -> Path:
    """A name in the current folder that nothing has yet: `model`, or else `model-2`, `model-3` ..."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for path in map(Path, names) if not path.exists())
