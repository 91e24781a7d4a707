"""`imagegpt cache`: show and clear the files that are kept on disk only to save time."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from imagegpt.cli import _console, _options
from imagegpt.common.memory import format_bytes
from imagegpt.files.paths import cache_folder

# Subfolders of the cache, their contents, and the names of our files in them: users may have put others there.
_KINDS = {
    "kernels": ("compiled kernels", re.compile(r"\w+-[0-9a-f]{24}(\.[0-9a-f]{8}\.tmp)?\.(so|sha256|lock)")),
    "hashes": ("hashes of images", re.compile(r"\.?[0-9a-f]{24}-(files|pixels)(\.[0-9a-f]{8}\.tmp)?")),
}


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove these files. They are rebuilt when needed.")] = False,
    as_json: _options.JsonOption = False,
) -> None:
    """Show the files that imagegpt keeps on disk only to save time, and their size.

    Models and data sets from the hub are not included: huggingface_hub manages them, see hf cache --help.
    """
    usage = {kind: _usage(kind) for kind in _KINDS}
    removed = _clear() if clear else None
    if as_json:
        _console.print_json({**usage, "removed_files": removed or 0})
        return
    _console.print_key_values((_KINDS[kind][0], _describe(**facts)) for kind, facts in usage.items())
    if removed is not None:
        _console.echo(f"removed {removed:,} files")


def _usage(kind: str) -> dict[str, Any]:
    sizes = [path.stat().st_size for path in _files(kind)]
    return {"folder": str(cache_folder() / kind), "files": len(sizes), "bytes": sum(sizes)}


def _describe(*, folder: str, files: int, bytes: int) -> str:  # noqa: A002 - the keys of the JSON
    return f"{files:,} {'file' if files == 1 else 'files'}, {format_bytes(bytes)}: {folder}"


def _files(kind: str) -> Iterator[Path]:
    """Our files in a subfolder of the cache."""
    folder, (_, pattern) = cache_folder() / kind, _KINDS[kind]
    if folder.is_dir():
        yield from (path for path in sorted(folder.iterdir()) if pattern.fullmatch(path.name) and path.is_file())


def _clear() -> int:
    """Remove our files and the folders that are then empty; return the number of files."""
    removed = 0
    for kind in _KINDS:
        for path in _files(kind):
            path.unlink(missing_ok=True)
            removed += 1
    for folder in (*(cache_folder() / kind for kind in _KINDS), cache_folder()):
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()
    return removed
