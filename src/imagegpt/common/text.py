"""Make user-provided text, such as file, class and model names, safe to print in terminals, cards and figures.

A name may contain anything: newlines, terminal control sequences, or bytes that are not UTF-8, which Python represents
by surrogates that no encoder accepts.
"""

import unicodedata


def printable(text: str) -> str:
    r"""Return the text on one line with unprintable characters escaped: `\n`, `\x1b`, `\xff`."""
    return "".join(character if _is_visible(character) else _escape(character) for character in text)


def truncate(text: str, limit: int) -> str:
    """Cut the text to at most `limit` characters, the last of which is then an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def surrogate_byte(character: str) -> int | None:
    """Return the byte that a surrogate represents in a name that is not UTF-8; None for other characters."""
    return ord(character) - 0xDC00 if "\udc80" <= character <= "\udcff" else None


def _is_visible(character: str) -> bool:
    # `isprintable` rejects every space but U+0020; Japanese and French names use others.
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escape(character: str) -> str:
    byte = surrogate_byte(character)
    return character.encode("unicode_escape").decode("ascii") if byte is None else f"\\x{byte:02x}"
