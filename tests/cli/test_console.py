"""Terminal output: names are printed verbatim, on any terminal."""

import io
import re
import sys
from pathlib import Path

import pytest
from rich.table import Table

from imagegpt.cli import _console

HOSTILE = ["[x]", "[/x]", "[red]a[/red]", ":smile:", "ol\udce9", "\x1b[2J", "a\nb", "$y_1^$"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_printed_verbatim(capsys, name):
    shown = _console.plain_text(name).plain
    _console.echo(f"made {name}")
    _console.print_stderr(f"reading {name}")
    _console.suggest_command(f"imagegpt info {name}")
    assert capsys.readouterr() == (f"made {shown}\n", f"reading {shown}\nNext: imagegpt info {shown}\n")
    table = Table("what", title=_console.plain_text(name))
    _console.add_row(table, name)
    _console.print_table(table)
    assert capsys.readouterr().out.count(shown) == 2


class Terminal(io.TextIOWrapper):
    """A stream that says that it is a terminal."""

    def __init__(self, encoding):
        super().__init__(io.BytesIO(), encoding=encoding)

    def isatty(self):
        return True

    def text(self):
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp850", "latin-1", "koi8-r"])
@pytest.mark.parametrize("name", HOSTILE)
def test_the_spinner_prints_names_verbatim(monkeypatch, name, encoding):
    terminal = Terminal(encoding)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with _console.lenient_streams(), _console.spinner(f"reading {name}"):
        pass
    assert f"reading {_console.plain_text(name).plain}" in terminal.text()


@pytest.mark.parametrize("encoding", ["ascii", "cp850", "latin-1", "koi8-r"])
def test_characters_that_cannot_be_encoded_are_replaced(monkeypatch, encoding):
    terminal = Terminal(encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    with _console.lenient_streams():
        _console.echo("too long… 茶")
    assert terminal.text() == "too long. \\u8336\n"
    with pytest.raises(UnicodeEncodeError):  # as it was before
        terminal.write("…")


def test_long_words_in_tables_are_wrapped(capsys):
    table = Table("model", "what it is")
    _console.add_row(table, "openai/imagegpt-medium-with-a-long-name", "a model")
    _console.print_table(table, width=30)
    rows = [line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert "".join(rows) == "openai/imagegpt-medium-with-a-long-name"


def test_commands_print_only_through_this_module():
    printing = re.compile(r"typer\.echo|(?<![.\w])print\(|(?<!_)Console\(|TextColumn\(|stdout\.write")
    for path in Path(_console.__file__).parent.glob("*.py"):
        found = printing.search(path.read_text(encoding="utf-8"))
        assert found is None or path.name == "_console.py", f"{path.name}: {found}"
