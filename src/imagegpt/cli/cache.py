"""`imagegpt cache`: what is kept on disk only to save work, how large it is, and removing it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from imagegpt.cli import _console
from imagegpt.common.memory import readable_bytes
from imagegpt.files.paths import cache_folder

# The folders in the cache, what is in them, and how our files are called: others may have been put there, too.
_KINDS = {
    "kernels": ("compiled kernels", re.compile(r"\w+-[0-9a-f]{24}(\.[0-9a-f]{8}\.tmp)?\.(so|sha256|lock)")),
    "hashes": ("hashes of images", re.compile(r"\.?[0-9a-f]{24}-(files|pixels)(\.[0-9a-f]{8}\.tmp)?")),
}


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove it. What is needed again is made again.")] = False,
) -> None:
    """Show what imagegpt keeps on disk only to save work, and how large it is.

    Models and data sets from the hub are not among it: huggingface_hub keeps them, see hf cache --help.
    """
    _console.print_facts((what, _size(name)) for name, (what, _) in _KINDS.items())
    if clear:
        _console.echo(f"removed {_clear():,} files")


def _size(kind: str) -> str:
    files = list(_files(kind))
    size = readable_bytes(sum(path.stat().st_size for path in files))
    return f"{len(files):,} {'file' if len(files) == 1 else 'files'}, {size}: {cache_folder() / kind}"


def _files(kind: str) -> Iterator[Path]:
    """Files of ours in a folder of the cache."""
    folder, (_, pattern) = cache_folder() / kind, _KINDS[kind]
    if folder.is_dir():
        yield from (path for path in sorted(folder.iterdir()) if pattern.fullmatch(path.name) and path.is_file())


def _clear() -> int:
    """Remove our files, and folders that are empty then; returns how many files there were."""
    removed = 0
    for kind in _KINDS:
        for path in _files(kind):
            path.unlink(missing_ok=True)
            removed += 1
    for folder in (*(cache_folder() / kind for kind in _KINDS), cache_folder()):
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()
    return removed
