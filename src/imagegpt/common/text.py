"""Text of the user's, such as names of files, classes and models, made fit for terminals, cards and pictures.

A name may hold anything: line ends, a terminal's control sequences, or bytes that are not UTF-8, which Python keeps as
surrogates and no encoder takes.
"""

import unicodedata


def printable(text: str) -> str:
    r"""The text on one line, with whatever cannot be shown written as its escape: `\n`, `\x1b`, `\xff`."""
    return "".join(character if _is_visible(character) else _escape(character) for character in text)


def shortened(text: str, limit: int) -> str:
    """The text, or its first characters and an ellipsis, `limit` in all."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def undecodable_byte(character: str) -> int | None:
    """The byte that a surrogate stands for in a name that is not UTF-8; None for other characters."""
    return ord(character) - 0xDC00 if "\udc80" <= character <= "\udcff" else None


def _is_visible(character: str) -> bool:
    # Python counts all spaces but one as not printable; Japanese and French names use others.
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escape(character: str) -> str:
    byte = undecodable_byte(character)
    return character.encode("unicode_escape").decode("ascii") if byte is None else f"\\x{byte:02x}"
