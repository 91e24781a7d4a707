"""Writing files so that they appear whole or not at all."""

import contextlib
import secrets
from pathlib import Path


def atomic_write(path: Path, content: bytes, what: str) -> None:
    """Write a file whole or not at all: under a temporary name beside it, then renamed over it.

    Args:
        path: of the file; its folder must exist.
        content: all of it.
        what: its name in the error, for example "the palette".
    Raises: OSError if it cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{what} cannot be written to {path} ({reason}): choose another place") from error
    finally:
        with contextlib.suppress(OSError):  # where it could not be made, it cannot be removed
            temporary.unlink()
