"""Output files and folders: checked before the slow work starts, and written atomically."""

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

from imagegpt.cli._checks import check_parent_folder
from imagegpt.cli._console import echo
from imagegpt.common.memory import check_memory
from imagegpt.common.text import printable
from imagegpt.files.atomic import temporary_path
from imagegpt.files.locks import LOCK_FILE, creation_lock
from imagegpt.files.paths import PARTIAL_DOWNLOAD
from imagegpt.images.png import encode_png

if TYPE_CHECKING:
    from PIL import Image

_MIN_BYTES_PER_IMAGE = 1000  # in memory, with file names


def check_image_count(num: int, kind: str) -> None:
    """Check that there is enough memory for a picture of that many images, before a model is loaded.

    Raises: ValueError if not.
    """
    advice = "ask for fewer, or sample into a folder (imagegpt sample --out FOLDER)"
    check_memory(f"one picture of {num:,} {kind}", num * _MIN_BYTES_PER_IMAGE, advice)


def check_png(path: Path, force: bool) -> None:
    """Check that a PNG can be written to a path.

    Raises: ValueError or OSError if the name is not a PNG's, the folder is missing or not writable, or the file exists.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"--out is {path}: images are written as PNG, choose a name that ends in .png")
    _check_file(path, force)


def check_gif(path: Path | None, force: bool) -> None:
    """Check that a GIF can be written to a path, unless it is None.

    Raises: see `check_png`.
    """
    if path is None:
        return
    if path.suffix.lower() != ".gif":
        raise ValueError(f"--gif is {path}: animations are written as GIF, choose a name that ends in .gif")
    _check_file(path, force)


def check_singles(folder: Path | None, names: Sequence[str], force: bool) -> list[Path]:
    """Check that individual PNGs can be written to a folder, which is created later if necessary.

    Args:
        folder: None if none are wanted.
        names: of the PNGs.
        force: allow existing files.
    Returns: the paths of the PNGs; empty without a folder.
    Raises: OSError if the folder cannot be created or is not writable, or a file exists.
    """
    if folder is None:
        return []
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: give --singles a folder")
    check_parent_folder(folder)
    paths = [folder / name for name in names]
    _refuse_to_overwrite(paths, force)
    _check_writable(folder if folder.exists() else folder.parent)
    return paths


def echo_extras(gif: Path | None, singles: Path | None) -> None:
    """Print where the animation and the single images are, if there are any."""
    if gif is not None:
        echo(f"as they appear: {gif}")
    if singles is not None:
        echo(f"one by one: {singles}")


def write_pngs(
    images: Mapping[Path, "Image.Image"],
    facts: Mapping[str, Any],
    gifs: Mapping[Path, Iterable["Image.Image"]] | None = None,
) -> None:
    """Write images and animations with metadata: either all files or none.

    Files are written under temporary names in their folders and renamed when all are complete. Missing folders are
    created, and removed again on failure.

    Args:
        images: path -> image.
        facts: metadata about how the images were made: model, seed, sampling rules.
        gifs: path -> frames from `animations.reveal_frames`; the animation loops forever.
    Raises: OSError if a file cannot be written.
    """
    writers: dict[Path, Callable[[Path], None]] = {}
    for path, image in images.items():
        writers[path] = partial(_write_png, image, facts)
    for path, frames in (gifs or {}).items():
        writers[path] = partial(_write_gif, frames, facts)
    _write_all(writers)


def _write_png(image: "Image.Image", facts: Mapping[str, Any], path: Path) -> None:
    from imagegpt import __version__

    path.write_bytes(encode_png(image, facts, __version__))


def _write_gif(frames: Iterable["Image.Image"], facts: Mapping[str, Any], path: Path) -> None:
    comment = "; ".join(["created with iGPT", *(f"{key}: {printable(str(value))}" for key, value in facts.items())])
    first, *rest = frames
    # loop=0 loops forever. optimize=False keeps the palette that the frames share.
    first.save(path, format="GIF", save_all=True, append_images=rest, loop=0, comment=comment.encode(), optimize=False)


def _write_all(writers: Mapping[Path, Callable[[Path], None]]) -> None:
    """Write all files or none.

    Args:
        writers: path -> function that writes its file to the path it is given.
    Raises: OSError if a file cannot be written.
    """
    temporary: dict[Path, Path] = {}
    created: list[Path] = []
    path = None
    try:
        for path, write in writers.items():
            if not path.parent.exists():
                path.parent.mkdir()
                created.append(path.parent)
            temporary[path] = temporary_path(path)
            write(temporary[path])
        while temporary:
            path, complete = next(iter(temporary.items()))
            complete.replace(path)
            del temporary[path]
        created.clear()
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{path} cannot be written ({reason}): free some space, or choose another path") from error
    finally:
        for leftover in temporary.values():
            leftover.unlink(missing_ok=True)
        for folder in created:
            folder.rmdir()


@contextmanager
def new_folder(out: Path, *, force: bool, replaceable: Collection[str]) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `out` if the `with` block succeeds, and removed if it raises.

    Meanwhile the parent folder also contains a lock file and, during replacement, the old folder. Temporary folders of
    killed processes are removed; a folder that such a process was replacing is restored.

    Args:
        out: the folder to create, in an existing folder.
        force: replace an existing `out`, provided that it contains only files named in `replaceable`.
        replaceable: names of the files that a folder of this kind may contain.
    Raises: OSError or ValueError, before the block runs, if `out` cannot be created.
    """
    out = out.absolute()
    check_parent_folder(out)
    _check_writable(out.parent)
    with creation_lock(out):
        _remove_leftovers(out)
        _check_replaceable(out, force, replaceable)
        temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.making")
        try:
            temporary.mkdir()
            yield temporary
            _check_replaceable(out, force, replaceable)  # it may have changed meanwhile
            _move_into_place(temporary, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _move_into_place(temporary: Path, out: Path) -> None:
    """Rename the complete folder to `out` and remove the folder that it replaces."""
    if not out.exists():
        temporary.rename(out)
        return
    old = out.with_name(f".{out.name}.{secrets.token_hex(4)}.old")
    out.rename(old)
    try:
        temporary.rename(out)
    except OSError:
        old.rename(out)
        raise
    try:
        shutil.rmtree(old)
    except OSError as error:  # the new folder is complete
        warnings.warn(f"the replaced folder {old} cannot be removed ({error.strerror}): remove it", stacklevel=2)


def _remove_leftovers(out: Path) -> None:
    """Remove temporary folders of killed processes; requires the lock on `out`."""
    leftover = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{8}}\.(making|old)")
    for path in sorted(out.parent.iterdir()):
        if leftover.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            if path.suffix == ".old" and not os.path.lexists(out):
                path.rename(out)
            else:
                shutil.rmtree(path)


def _check_file(path: Path, force: bool) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    _refuse_to_overwrite([path], force)
    check_parent_folder(path)
    _check_writable(path.parent)


def _refuse_to_overwrite(paths: Sequence[Path], force: bool) -> None:
    existing = [path for path in paths if os.path.lexists(path)]
    if existing and not force:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise FileExistsError(f"{existing[0]}{more} exists already: give --force to overwrite it")


def _check_writable(folder: Path) -> None:
    """Check by creating an unnamed file: permissions do not tell, for example on a read-only file system."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({error.strerror}): choose another folder") from error


def _check_replaceable(out: Path, force: bool, replaceable: Collection[str]) -> None:
    if not os.path.lexists(out):
        return
    if not out.is_dir() or out.is_symlink():
        raise ValueError(f"{out} exists and is not a folder: choose another path")
    if not force:
        raise ValueError(f"{out} exists: choose another path, or replace it with --force")
    own = {*replaceable, LOCK_FILE, PARTIAL_DOWNLOAD}
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in own)
    if foreign:
        raise ValueError(f"{out} contains {foreign[0]}, which is not part of a model: --force only replaces models")
