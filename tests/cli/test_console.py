"""What the commands print: names as they are, on any terminal."""

import io
import re
import sys
from pathlib import Path

import pytest
from rich.table import Table

from imagegpt.cli import _console

HOSTILE = ["[x]", "[/x]", "[red]a[/red]", ":smile:", "ol\udce9", "\x1b[2J", "a\nb", "$y_1^$"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_printed_as_they_are(capsys, name):
    shown = _console.plain(name).plain
    _console.echo(f"made {name}")
    _console.say(f"reading {name}")
    _console.say_next(f"imagegpt info {name}")
    assert capsys.readouterr() == (f"made {shown}\n", f"reading {shown}\nNext: imagegpt info {shown}\n")
    table = Table("what", title=_console.plain(name))
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
def test_names_on_a_terminal_with_a_spinner(monkeypatch, name, encoding):
    terminal = Terminal(encoding)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with _console.lenient_streams(), _console.working(f"reading {name}"):
        pass
    assert f"reading {_console.plain(name).plain}" in terminal.text()


@pytest.mark.parametrize("encoding", ["ascii", "cp850", "latin-1", "koi8-r"])
def test_what_an_encoding_lacks_is_replaced(monkeypatch, encoding):
    terminal = Terminal(encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    with _console.lenient_streams():
        _console.echo("too long… 茶")
    assert terminal.text() == "too long. \\u8336\n"
    with pytest.raises(UnicodeEncodeError):  # as it was before
        terminal.write("…")


def test_long_words_in_tables_are_folded_not_cut(capsys):
    table = Table("model", "what it is")
    _console.add_row(table, "openai/imagegpt-medium-with-a-long-name", "a model")
    _console.print_table(table, width=30)
    rows = [line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert "".join(rows) == "openai/imagegpt-medium-with-a-long-name"


def test_the_commands_print_nothing_past_this():
    printing = re.compile(r"typer\.echo|(?<![.\w])print\(|(?<!_)Console\(|TextColumn\(|stdout\.write")
    for path in Path(_console.__file__).parent.glob("*.py"):
        found = printing.search(path.read_text(encoding="utf-8"))
        assert found is None or path.name == "_console.py", f"{path.name}: {found}"
