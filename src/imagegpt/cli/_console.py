"""Terminal output of all commands.

Nothing else prints. Without these helpers rich would interpret `[x]` in a file name as markup and `:x:` as an emoji,
control characters would reach the terminal, and characters that the terminal cannot encode would raise an error.
"""

import codecs
import io
import json
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.progress import TextColumn
from rich.table import Table
from rich.text import Text

from imagegpt.common.text import printable

_ERRORS = "imagegpt"  # name of `_replacement` as a codec error handler


def plain_text(text: str) -> Text:
    """Wrap text so that rich prints it verbatim, for example in table cells and titles."""
    return Text(printable(text))


def echo(text: str) -> None:
    """Print a line of the result to stdout."""
    sys.stdout.write(printable(text) + "\n")
    sys.stdout.flush()


def print_json(result: Mapping[str, Any]) -> None:
    """Print a result to stdout as one JSON object, for `--json`; NaN and infinities become null."""
    finite = json.loads(json.dumps(result, default=str), parse_constant=lambda _: None)
    sys.stdout.write(json.dumps(finite, indent=2, ensure_ascii=True) + "\n")
    sys.stdout.flush()


def print_stderr(text: str) -> None:
    """Print a message to stderr."""
    stderr_console().print(plain_text(text), soft_wrap=True)


def suggest_command(command: str) -> None:
    """Suggest the command to run next, formatted by `imagegpt.common.shell.shell_command`."""
    print_stderr(f"Next: {command}")


def print_key_values(pairs: Iterable[tuple[str, str]]) -> None:
    """Print names and values to stdout, one pair per line; lines are not wrapped, so that paths can be copied."""
    lines = list(pairs)
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        echo(f"{name:{width}}  {value}")


def print_table(table: Table, *, width: int | None = None) -> None:
    """Print a table to stdout; text too wide for its column is wrapped, not cut off.

    Args:
        table: filled with `add_row`.
        width: in characters; None means the width of the terminal.
    """
    for column in table.columns:
        column.overflow = "fold"
    Console(highlight=False, markup=False, emoji=False, width=width).print(table)


def add_row(table: Table, *cells: str) -> None:
    """Add a row of plain text to a table."""
    table.add_row(*map(plain_text, cells))


def stderr_console() -> Console:
    """Return a console for messages and progress; stdout is for results only."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def text_column(text: str) -> TextColumn:
    """Return a text column of a progress bar; `{task}` in the text is replaced by the task."""
    return TextColumn(text, markup=False)


@contextmanager
def spinner(activity: str) -> Iterator[None]:
    """Show a spinner with a description of the current activity while the `with` block runs."""
    console = stderr_console()
    if not console.is_terminal:
        yield
        return
    style = "dots" if console.encoding.startswith("utf") else "line"
    with console.status(plain_text(activity), spinner=style):
        yield


@contextmanager
def lenient_streams() -> Iterator[None]:
    """Make stdout and stderr replace characters they cannot encode, instead of raising, within the `with` block."""
    codecs.register_error(_ERRORS, _replacement)
    changed = [(stream, stream.errors) for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    for stream, _ in changed:
        stream.reconfigure(errors=_ERRORS)
    try:
        yield
    finally:
        for stream, errors in changed:
            with suppress(OSError):  # reconfiguring flushes, which fails if the pipe is closed
                stream.reconfigure(errors=errors)


@contextmanager
def short_warnings() -> Iterator[None]:
    """Print each UserWarning as one line, without its place in the code, within the `with` block."""
    with warnings.catch_warnings():
        show_default = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *location: Any) -> None:
            if category is UserWarning:
                print_stderr(f"warning: {message}")
            else:
                show_default(message, category, *location)

        warnings.showwarning = show
        warnings.simplefilter("default", UserWarning)
        yield


def _replacement(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that cannot be encoded: rich's ellipsis by a dot, others by their escape sequences."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return missing.replace("…", ".").encode("ascii", "backslashreplace").decode(), error.end
