"""Where results go: checked before the slow work, and written whole or not at all."""

import os
import re
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagegpt.common.memory import check_memory
from imagegpt.common.text import printable
from imagegpt.files.locks import LOCK_FILE, locked_name
from imagegpt.files.paths import FETCHING
from imagegpt.images.png import png_bytes

if TYPE_CHECKING:
    from PIL import Image

_LEAST_BYTES = 1000  # of an image in memory, with its names


def check_num(num: int, things: str) -> None:
    """See that so many images may be thought of at all, before their names are made up and a model is loaded.

    Raises: ValueError, in one sentence, if there is no memory for them.
    """
    advice = "ask for fewer, or draw them into a folder (imagegpt sample --out FOLDER)"
    check_memory(f"one picture of {num:,} {things}", num * _LEAST_BYTES, advice)


def check_png(path: Path, force: bool) -> None:
    """See that a PNG can be written to a path, before the slow work.

    Raises: ValueError or OSError, in one sentence, if its name, its folder or what is there already forbids it.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"--out is {path}: images are written as PNG, choose a name that ends in .png")
    _check_file(path, force)


def check_gif(path: Path | None, force: bool) -> None:
    """See that an animation can be written to a path, if there is to be one, before the slow work.

    Raises: ValueError or OSError, in one sentence, if its name, its folder or what is there already forbids it.
    """
    if path is None:
        return
    if path.suffix.lower() != ".gif":
        raise ValueError(f"--gif is {path}: animations are written as GIF, choose a name that ends in .gif")
    _check_file(path, force)


def check_singles(folder: Path | None, names: Sequence[str], force: bool) -> list[Path]:
    """See that single PNGs can be written into a folder, which is made later if it is not there.

    Returns: their paths; none if there is no folder.
    Raises: ValueError or OSError, in one sentence, if that cannot be.
    """
    if folder is None:
        return []
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: --singles wants a folder")
    if not folder.exists() and not folder.parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder.parent}: make it first, or choose another place for --singles"
        )
    paths = [folder / name for name in names]
    _refuse_to_overwrite(paths, force)
    _check_writable(folder if folder.exists() else folder.parent)
    return paths


def write_pngs(
    images: Mapping[Path, "Image.Image"],
    facts: Mapping[str, Any],
    gifs: Mapping[Path, Iterable["Image.Image"]] | None = None,
) -> None:
    """Write images, and perhaps animations, with facts in their metadata: all of them, or none.

    Every file is written under a temporary name beside its place, and they are renamed when all are complete. Folders
    that do not exist are made, and removed again on failure.

    Args:
        images: what goes where.
        facts: how they were made; model, seed, rules and such.
        gifs: the frames of animations, from `animations.appearing`; they loop for ever.
    Raises: OSError if that fails.
    """
    writers: dict[Path, Callable[[Path], None]] = {}
    for path, image in images.items():
        writers[path] = partial(_write_png, image, facts)
    for path, frames in (gifs or {}).items():
        writers[path] = partial(_write_gif, frames, facts)
    _write_all(writers)


def _write_png(image: "Image.Image", facts: Mapping[str, Any], path: Path) -> None:
    from imagegpt import __version__

    path.write_bytes(png_bytes(image, facts, __version__))


def _write_gif(frames: Iterable["Image.Image"], facts: Mapping[str, Any], path: Path) -> None:
    comment = "; ".join(["created with iGPT", *(f"{key}: {printable(str(value))}" for key, value in facts.items())])
    first, *rest = frames
    # loop=0 is for ever. Nothing is to be optimised: the frames share a palette.
    first.save(path, format="GIF", save_all=True, append_images=rest, loop=0, comment=comment.encode(), optimize=False)


def _write_all(writers: Mapping[Path, Callable[[Path], None]]) -> None:
    """Write files whole or not at all, each by its own function."""
    temporary: dict[Path, Path] = {}
    made: list[Path] = []
    path = None
    try:
        for path, write in writers.items():
            if not path.parent.exists():
                path.parent.mkdir()
                made.append(path.parent)
            temporary[path] = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
            write(temporary[path])
        while temporary:
            path, whole = next(iter(temporary.items()))
            whole.replace(path)
            del temporary[path]
        made.clear()
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{path} cannot be written ({reason}): free some space or choose another place") from error
    finally:
        for rest in temporary.values():
            rest.unlink(missing_ok=True)
        for folder in made:
            folder.rmdir()


@contextmanager
def new_folder(out: Path, *, force: bool, replaceable: Collection[str]) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when the block ends well and vanishes when it does not.

    Beside `out` are, for that time, a lock, the folder that is filled, and one that is being replaced. Those that a
    killed process left are removed; one that it had begun to replace is put back.

    Args:
        out: where it shall be; its parent must exist.
        force: an `out` that holds only files called as in `replaceable` may be replaced.
        replaceable: the names a folder of this kind may hold.
    Raises: OSError or ValueError, before anything is done, if `out` could not be made.
    """
    out = out.absolute()
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent}: make it, or choose another place")
    _check_writable(out.parent)
    with locked_name(out):
        _clear_leftovers(out)
        _check_place(out, force, replaceable)
        making = out.with_name(f".{out.name}.{secrets.token_hex(4)}.making")
        try:
            making.mkdir()
            yield making
            _check_place(out, force, replaceable)  # minutes have gone by
            _put_in_place(making, out)
        finally:
            shutil.rmtree(making, ignore_errors=True)


def _put_in_place(making: Path, out: Path) -> None:
    """Rename a folder that is whole to its place, and remove what was there."""
    if not out.exists():
        making.rename(out)
        return
    old = out.with_name(f".{out.name}.{secrets.token_hex(4)}.old")
    out.rename(old)
    try:
        making.rename(out)
    except OSError:
        old.rename(out)
        raise
    try:
        shutil.rmtree(old)
    except OSError as error:  # what was asked for is done
        warnings.warn(f"{old}, which was replaced, cannot be removed ({error.strerror}): remove it", stacklevel=2)


def _clear_leftovers(out: Path) -> None:
    """Remove the folders of earlier processes that were killed; nobody else may be making `out`."""
    left = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{8}}\.(making|old)")
    for path in sorted(out.parent.iterdir()):
        if left.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            if path.suffix == ".old" and not os.path.lexists(out):
                path.rename(out)
            else:
                shutil.rmtree(path)


def _check_file(path: Path, force: bool) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    _refuse_to_overwrite([path], force)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {path.parent}: make it first, or choose another place for {path.name}"
        )
    _check_writable(path.parent)


def _refuse_to_overwrite(paths: Sequence[Path], force: bool) -> None:
    there = [path for path in paths if os.path.lexists(path)]
    if there and not force:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise FileExistsError(f"{there[0]}{more} exists already: give --force to overwrite it")


def _check_writable(folder: Path) -> None:
    """Make a file without a name: permissions alone do not tell, on a read-only disk for one."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({error.strerror}): choose another folder") from error


def _check_place(out: Path, force: bool, replaceable: Collection[str]) -> None:
    if not os.path.lexists(out):
        return
    if not out.is_dir() or out.is_symlink():
        raise ValueError(f"{out} exists and is no folder: choose another place")
    if not force:
        raise ValueError(f"{out} exists: choose another place, or replace it with --force")
    own = {*replaceable, LOCK_FILE, FETCHING}
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in own)
    if foreign:
        raise ValueError(f"{out} holds {foreign[0]}, which is no part of a model: --force replaces nothing but models")
