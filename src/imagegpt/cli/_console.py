"""How the commands write to the terminal: everything they print goes through here.

rich would read `[x]` in a name as markup and `:x:` as a picture, control characters in a name would reach the terminal,
and one ellipsis would end a command in an error where the terminal's encoding has none.
"""

import codecs
import io
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.progress import TextColumn
from rich.table import Table
from rich.text import Text

from imagegpt.common.text import printable

_ERRORS = "imagegpt"  # the name of `_replacement` among Python's ways to treat what cannot be encoded


def plain(text: str) -> Text:
    """Text of the user's for rich, as in cells and titles: it is shown as it is."""
    return Text(printable(text))


def echo(text: str) -> None:
    """Print a line of results on stdout."""
    sys.stdout.write(printable(text) + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """Print a line for the user on stderr."""
    stderr_console().print(plain(text), soft_wrap=True)


def say_next(command: str) -> None:
    """Suggest the command that continues with what was just made, see `imagegpt.common.shell`."""
    say(f"Next: {command}")


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names and values on stdout, a line each however long it is, so that paths can be copied."""
    lines = list(facts)
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        echo(f"{name:{width}}  {value}")


def print_table(table: Table, *, width: int | None = None) -> None:
    """Print a table on stdout; what is too wide for a column is folded, not cut.

    Args:
        table: of texts.
        width: of all; None is the terminal's.
    """
    for column in table.columns:
        column.overflow = "fold"
    Console(highlight=False, markup=False, emoji=False, width=width).print(table)


def add_row(table: Table, *cells: str) -> None:
    """Add a row of texts to a table."""
    table.add_row(*map(plain, cells))


def stderr_console() -> Console:
    """Where progress goes, so that stdout holds results only."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def text_column(text: str) -> TextColumn:
    """A column of a progress bar; `{task}` in the text stands for the task."""
    return TextColumn(text, markup=False)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Say what is being done while it lasts."""
    console = stderr_console()
    if not console.is_terminal:
        yield
        return
    spinner = "dots" if console.encoding.startswith("utf") else "line"
    with console.status(plain(what), spinner=spinner):
        yield


@contextmanager
def lenient_streams() -> Iterator[None]:
    """Let stdout and stderr replace what their encoding lacks while this lasts, where they would raise an error."""
    codecs.register_error(_ERRORS, _replacement)
    changed = [(stream, stream.errors) for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    for stream, _ in changed:
        stream.reconfigure(errors=_ERRORS)
    try:
        yield
    finally:
        for stream, errors in changed:
            with suppress(OSError):  # it flushes, which fails where the reader of a pipe is gone
                stream.reconfigure(errors=errors)


@contextmanager
def warnings_in_words() -> Iterator[None]:
    """Print warnings for the user as lines of their own while this lasts, without where in the code they come from."""
    with warnings.catch_warnings():
        elsewhere = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if category is UserWarning:
                say(f"warning: {message}")
            else:
                elsewhere(message, category, *where)

        warnings.showwarning = show
        warnings.simplefilter("default", UserWarning)
        yield


def _replacement(error: UnicodeError) -> tuple[str, int]:
    """What is written in place of characters that cannot be encoded: a dot for rich's ellipsis, else their escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return missing.replace("…", ".").encode("ascii", "backslashreplace").decode(), error.end
