"""Download of OpenAI's public checkpoints: resumable, and verified before any file appears under its name.

    OUT/.imagegpt.fetching/NAME.part    the bytes received so far
    OUT/.imagegpt.fetching/NAME         a complete file, until all are complete
    OUT/NAME                            after the checksums of all tensors have been verified

One process at a time downloads into a folder. After a failure the files received stay, for the next call to resume.
Sizes are limited: the index implies the size of each data file, and the model's size their sum.

Source of the URLs: download.py of the original repository.
"""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from imagegpt.checkpoints.https import Progress, check_url, download_file
from imagegpt.checkpoints.tensor_bundle import DamagedFileError, read_bundle, shard_path
from imagegpt.files.atomic import fsync, write_error
from imagegpt.files.locks import folder_lock, remove_if_empty
from imagegpt.files.paths import PARTIAL_DOWNLOAD
from imagegpt.images.palette import PALETTE_FILE, ColorPalette

BASE_URL = "https://openaipublic.blob.core.windows.net/image-gpt"
STEPS = (131_000, 262_000, 524_000, 1_000_000)
Size = Literal["s", "m", "l"]

_NUM_SHARDS = {"s": 32, "m": 32, "l": 64}
_NUM_WEIGHTS = {"s": 77_000_000, "m": 456_000_000, "l": 1_363_000_000}
_BYTES_PER_WEIGHT = 4 * 4  # float32, with two moments of Adam and a moving average
_MAX_INDEX_BYTES, _MAX_PALETTE_BYTES = 16 << 20, 1 << 20
_SLACK_BYTES = 1 << 20  # that a data file may have after its last variable


def checkpoint_urls(size: Size, step: int, *, bert: bool = False, base: str = BASE_URL) -> dict[str, str]:
    """Return the URLs of a checkpoint's files and its palette, by file name.

    Args:
        step: number of training steps, one of `STEPS`.
        base: URL of OpenAI's files, or of a mirror.
    Raises: ValueError unless it is HTTPS, or HTTP to this machine.
    """
    check_url(base)
    num_shards, prefix = _NUM_SHARDS[size], f"model.ckpt-{step}"
    folder = f"{base.rstrip('/')}/checkpoints/igpt-{size}{'-bert' if bert else ''}/{step}"
    names = [f"{prefix}.data-{shard:05d}-of-{num_shards:05d}" for shard in range(num_shards)]
    urls = {name: f"{folder}/{name}" for name in [f"{prefix}.index", *names]}
    return {**urls, PALETTE_FILE: f"{base.rstrip('/')}/color-clusters/{PALETTE_FILE}"}


def max_checkpoint_bytes(size: Size) -> int:
    """Return the maximum total size of a model's data files."""
    return _NUM_WEIGHTS[size] * _BYTES_PER_WEIGHT


def download_checkpoint(
    urls: Mapping[str, str],
    out: Path,
    progress: Progress = lambda *_: None,
    *,
    max_bytes: int = _NUM_WEIGHTS["l"] * _BYTES_PER_WEIGHT,
) -> Path:
    """Download a checkpoint. Existing files are not downloaded again; an interrupted call is resumed.

    Args:
        urls: from `checkpoint_urls`.
        out: the folder, created if needed; its parent must exist.
        progress: called with a file's name, the bytes received and the total.
        max_bytes: limit on the data files together, see `max_checkpoint_bytes`.
    Returns: the prefix of the checkpoint.
    Raises: ConnectionError if a server cannot be reached or sends something else; ValueError if a file is damaged, or
        another process downloads into the folder; OSError if a file cannot be written. Valid files stay.
    """
    if not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent}: create it first, or choose another path")
    index = _index_name(urls)
    with _lock_folder(out) as partial:
        limits = {index: _MAX_INDEX_BYTES, PALETTE_FILE: _MAX_PALETTE_BYTES}
        for name in sorted(urls, key=lambda name: name != index):  # the index first, for the sizes of the others
            if not ((out / name).is_file() or (partial / name).is_file()):
                download_file(urls[name], partial / name, limits.get(name, 0), progress)
            if name == index:
                limits |= _data_limits(partial if (partial / index).is_file() else out, urls, partial, max_bytes)
        _verify(urls, out, partial)
        new = [name for name in urls if (partial / name).is_file()]
        for name in new:
            fsync(partial / name)
        for name in sorted(new, key=lambda name: name == index):  # the index last: it marks completion
            (partial / name).replace(out / name)
        fsync(out)
        shutil.rmtree(partial)
    return out / index.removesuffix(".index")


@contextlib.contextmanager
def _lock_folder(out: Path) -> Iterator[Path]:
    """Create and lock the folder, with a folder for partial downloads in it.

    Yields: the inner folder, which is removed at the end if it is empty.
    Raises: OSError, in one sentence.
    """
    is_new, partial = not out.exists(), out / PARTIAL_DOWNLOAD
    try:
        out.mkdir(exist_ok=True)
        with folder_lock(out, "downloads into"):
            partial.mkdir(exist_ok=True)
            try:
                yield partial
            finally:
                with contextlib.suppress(OSError):
                    partial.rmdir()
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError):  # already one sentence
            raise
        raise write_error("the checkpoint", out, error) from error
    finally:
        if is_new:
            remove_if_empty(out)


def _data_limits(folder: Path, urls: Mapping[str, str], partial: Path, max_bytes: int) -> dict[str, int]:
    """Return the maximum size of each data file according to the index; remove a damaged index just downloaded.

    Raises: ValueError if it is damaged, or implies more data than the model needs.
    """
    index = _index_name(urls)
    try:
        bundle = read_bundle(folder / index.removesuffix(".index"))
        names = [shard_path(bundle.prefix, shard, bundle.num_shards).name for shard in range(bundle.num_shards)]
        sizes = bundle.min_data_sizes()
        if not urls.keys() >= set(names):
            raise ValueError(f"it lists {len(names)} data files, but there are {len(urls) - 2}")
        if sum(sizes) > max_bytes:
            raise ValueError(f"it implies {sum(sizes):,} bytes, but such a model has at most {max_bytes:,}")
    except ValueError as error:
        raise ValueError(f"{index} is damaged ({error}); {_retry_hint(folder / index, partial)}") from error
    return {name: size + _SLACK_BYTES for name, size in zip(names, sizes, strict=True)}


def _verify(urls: Mapping[str, str], out: Path, partial: Path) -> None:
    """Verify the checksums of all variables; remove damaged files just downloaded."""
    paths = {name: partial / name if (partial / name).is_file() else out / name for name in urls}
    index = _index_name(urls)
    try:
        bundle = read_bundle(paths[index].with_suffix(""), locate=lambda path: paths.get(path.name, path))
        for name in bundle:
            if bundle.entry(name).dtype is not None:
                bundle[name]
        ColorPalette.load(paths[PALETTE_FILE])
    except DamagedFileError as error:
        raise ValueError(f"{error}; {_retry_hint(error.path, partial)}") from error
    except ValueError as error:
        damaged = paths[index if PALETTE_FILE not in str(error) else PALETTE_FILE]
        raise ValueError(f"{damaged.name} is damaged ({error}); {_retry_hint(damaged, partial)}") from error


def _index_name(urls: Mapping[str, str]) -> str:
    (name,) = (name for name in urls if name.endswith(".index"))
    return name


def _retry_hint(path: Path, partial: Path) -> str:
    """Remove a damaged file if it was just downloaded, and not the user's; return how to get it again."""
    if path.parent != partial:
        return "remove it, then the same command downloads it again"
    path.unlink(missing_ok=True)
    return "the same command downloads it again"
