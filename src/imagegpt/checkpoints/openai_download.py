"""Fetching OpenAI's public files: resumed where it was cut, checked before a file takes its place.

    OUT/.imagegpt.fetching/NAME.part    what has come so far
    OUT/.imagegpt.fetching/NAME         a file that is complete, until all are
    OUT/NAME                            when the checksums of all tensors were right

Only one process at a time fetches into a folder. What has come stays there when it fails, for the next call.

No file may be larger than what the model needs: the index says how long each data file is, and the model's size how
long all of them are.

Source of the addresses: download.py of the original repository.
"""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from imagegpt.checkpoints.https import Progress, check_address, fetch
from imagegpt.checkpoints.tensor_bundle import DamagedError, read_bundle, shard_path
from imagegpt.files.atomic import cannot_write, sync
from imagegpt.files.locks import locked, remove_if_unused
from imagegpt.files.paths import FETCHING
from imagegpt.images.palette import PALETTE_FILE, ColorPalette

BASE = "https://openaipublic.blob.core.windows.net/image-gpt"
STEPS = (131_000, 262_000, 524_000, 1_000_000)
Size = Literal["s", "m", "l"]

_SHARDS = {"s": 32, "m": 32, "l": 64}
_WEIGHTS = {"s": 77_000_000, "m": 456_000_000, "l": 1_363_000_000}
_WEIGHT_BYTES = 4 * 4  # float32, with the two moments of Adam and an average
_INDEX_BYTES, _PALETTE_BYTES = 16 << 20, 1 << 20
_SLACK_BYTES = 1 << 20  # of a data file beyond its last variable


def addresses(size: Size, step: int, *, bert: bool = False, base: str = BASE) -> dict[str, str]:
    """The files of a checkpoint and its palette: names and addresses.

    Args:
        size: "s", "m" or "l".
        step: updates that were made, one of `STEPS`.
        bert: the bidirectional model.
        base: where OpenAI's files, or a mirror, begin.
    Raises: ValueError if that is no address of https, or of http on this machine.
    """
    check_address(base)
    shards, prefix = _SHARDS[size], f"model.ckpt-{step}"
    folder = f"{base.rstrip('/')}/checkpoints/igpt-{size}{'-bert' if bert else ''}/{step}"
    names = [f"{prefix}.data-{shard:05d}-of-{shards:05d}" for shard in range(shards)]
    files = {name: f"{folder}/{name}" for name in [f"{prefix}.index", *names]}
    return {**files, PALETTE_FILE: f"{base.rstrip('/')}/color-clusters/{PALETTE_FILE}"}


def largest_bytes(size: Size) -> int:
    """The most that the data files of a model can have together."""
    return _WEIGHTS[size] * _WEIGHT_BYTES


def download(
    files: dict[str, str],
    out: Path,
    progress: Progress = lambda *_: None,
    *,
    most_bytes: int = _WEIGHTS["l"] * _WEIGHT_BYTES,
    pause_s: float = 1.0,
) -> Path:
    """Fetch a checkpoint. What is there already is not fetched again; a call that was stopped goes on.

    Args:
        files: from `addresses`.
        out: the folder; made if it is not there, its parent must be.
        progress: called with a file's name, the bytes that are there and the bytes there will be.
        most_bytes: of the data files together, see `largest_bytes`.
        pause_s: before an address is tried again, doubled each time.
    Returns: the prefix of the checkpoint.
    Raises: ConnectionError if a server cannot be reached or sends something else; ValueError if what came is damaged,
        or another process fetches into the folder; OSError if it cannot be written. Good files stay as they are.
    """
    if not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent}: make it first, or choose another place")
    (index,) = (name for name in files if name.endswith(".index"))
    with _claimed(out) as making:
        limits = {index: _INDEX_BYTES, PALETTE_FILE: _PALETTE_BYTES}
        for name in sorted(files, key=lambda name: name != index):  # the index first, it says how long the others are
            if not ((out / name).is_file() or (making / name).is_file()):
                fetch(files[name], making / name, limits.get(name, 0), progress, pause_s)
            if name == index:
                limits |= _data_limits(making if (making / index).is_file() else out, files, making, most_bytes)
        _check(files, out, making)
        new = [name for name in files if (making / name).is_file()]
        for name in new:
            sync(making / name)
        for name in sorted(new, key=lambda name: name == index):  # the index last: with it, all is there
            (making / name).replace(out / name)
        sync(out)
        shutil.rmtree(making)
    return out / index.removesuffix(".index")


@contextlib.contextmanager
def _claimed(out: Path) -> Iterator[Path]:
    """The folder, made if need be and kept from other processes, with one in it for what is not done yet.

    Gives: the inner one, which goes at the end if nothing has come into it.
    Raises: OSError, in one sentence, for the system's own.
    """
    is_new, making = not out.exists(), out / FETCHING
    try:
        out.mkdir(exist_ok=True)
        with locked(out, "downloads into"):
            making.mkdir(exist_ok=True)
            try:
                yield making
            finally:
                with contextlib.suppress(OSError):
                    making.rmdir()
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError):  # a sentence of ours
            raise
        raise cannot_write("the checkpoint", out, error) from error
    finally:
        if is_new:
            remove_if_unused(out)


def _data_limits(folder: Path, files: dict[str, str], making: Path, most_bytes: int) -> dict[str, int]:
    """The most bytes that each data file may have, by the index; one that has just come and is no good is removed.

    Raises: ValueError if it is damaged, or asks for more than the model needs.
    """
    (index,) = (name for name in files if name.endswith(".index"))
    try:
        bundle = read_bundle(folder / index.removesuffix(".index"))
        names = [shard_path(bundle.prefix, shard, bundle.num_shards).name for shard in range(bundle.num_shards)]
        sizes = bundle.data_sizes()
        if not files.keys() >= set(names):
            raise ValueError(f"it lists {len(names)} data files, and there are {len(files) - 2}")
        if sum(sizes) > most_bytes:
            raise ValueError(f"it asks for {sum(sizes):,} bytes, and such a model has {most_bytes:,} at most")
    except ValueError as error:
        raise ValueError(f"{index} is damaged ({error}); {_again(folder / index, making)}") from error
    return {name: size + _SLACK_BYTES for name, size in zip(names, sizes, strict=True)}


def _check(files: Sequence[str] | dict[str, str], out: Path, making: Path) -> None:
    """See that all checksums in the files are right; damaged ones that have just come are removed."""
    (index,) = (name for name in files if name.endswith(".index"))

    def where(name: str) -> Path:
        return making / name if (making / name).is_file() else out / name

    places = {name: where(name) for name in files}
    try:
        bundle = read_bundle(places[index].with_suffix(""), locate=lambda path: places.get(path.name, path))
        for name in bundle:
            if bundle.entry(name).dtype is not None:
                bundle[name]
        ColorPalette.load(places[PALETTE_FILE])
    except DamagedError as error:
        raise ValueError(f"{error}; {_again(error.path, making)}") from error
    except ValueError as error:
        bad = places[index if PALETTE_FILE not in str(error) else PALETTE_FILE]
        raise ValueError(f"{bad.name} is damaged ({error}); {_again(bad, making)}") from error


def _again(path: Path, making: Path) -> str:
    """How a damaged file can be had again; one that has just come is removed, others are the user's."""
    if path.parent != making:
        return "remove it, then the same command fetches it again"
    path.unlink(missing_ok=True)
    return "the same command fetches it again"
