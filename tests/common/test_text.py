import pytest

from imagegpt.common.text import printable, truncate


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat.png", "cat.png"),
        ("čaj 茶　🍵", "čaj 茶　🍵"),  # with a Japanese space
        ("[x] $y_z$ :tea:", "[x] $y_z$ :tea:"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("ol\udce9", r"ol\xe9"),  # Latin-1's é, as Python reads it from a file system of UTF-8
        ("\u202egnp.exe", r"\u202egnp.exe"),  # right to left
        ("\ud800", r"\ud800"),
    ],
)
def test_unprintable_characters_are_escaped(text, shown):
    assert printable(text) == shown
    shown.encode()


def test_truncate():
    assert truncate("abcdef", 6) == "abcdef"
    assert truncate("abcdefg", 6) == "abcde…"
