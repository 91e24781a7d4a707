"""Fetching OpenAI's public files: resumed where it was cut, checked before a file takes its place.

    OUT/.fetching/NAME.part    what has come so far
    OUT/.fetching/NAME         a file that is complete, until all are
    OUT/NAME                   when the checksums of all tensors were right

Source of the addresses: download.py of the original repository.
"""

import base64
import contextlib
import hashlib
import http.client
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from imagegpt.checkpoints.tensor_bundle import DamagedError, read_bundle
from imagegpt.palette import PALETTE_FILE, ColorPalette

BASE = "https://openaipublic.blob.core.windows.net/image-gpt"
STEPS = (131_000, 262_000, 524_000, 1_000_000)
Size = Literal["s", "m", "l"]

_SHARDS = {"s": 32, "m": 32, "l": 64}
_FETCHING = ".fetching"
_TRIES = 5  # without a byte in between
_TIMEOUT_S = 60
_PIECE = 1 << 18

Progress = Callable[[str, int, int], None]


def addresses(size: Size, step: int, *, bert: bool = False, base: str = BASE) -> dict[str, str]:
    """The files of a checkpoint and its palette: names and addresses.

    Args:
        size: "s", "m" or "l".
        step: updates that were made, one of `STEPS`.
        bert: the bidirectional model.
        base: where OpenAI's files, or a mirror, begin.
    """
    shards, prefix = _SHARDS[size], f"model.ckpt-{step}"
    folder = f"{base.rstrip('/')}/checkpoints/igpt-{size}{'-bert' if bert else ''}/{step}"
    names = [f"{prefix}.data-{shard:05d}-of-{shards:05d}" for shard in range(shards)]
    files = {name: f"{folder}/{name}" for name in [f"{prefix}.index", *names]}
    return {**files, PALETTE_FILE: f"{base.rstrip('/')}/color-clusters/{PALETTE_FILE}"}


def download(files: dict[str, str], out: Path, progress: Progress = lambda *_: None, *, pause_s: float = 1.0) -> Path:
    """Fetch a checkpoint. What is there already is not fetched again; a call that was stopped goes on.

    Args:
        files: from `addresses`.
        out: the folder; made if it is not there, its parent must be.
        progress: called with a file's name, the bytes that are there and the bytes there will be.
        pause_s: before an address is tried again, doubled each time.
    Returns: the prefix of the checkpoint.
    Raises: ConnectionError if a server cannot be reached or sends something else; ValueError if what came is damaged;
        OSError if it cannot be written. Good files stay as they are.
    """
    if not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent}: make it first, or choose another place")
    (index,) = (name for name in files if name.endswith(".index"))
    prefix = out / index.removesuffix(".index")
    making = out / _FETCHING
    making.mkdir(parents=True, exist_ok=True)
    for name, address in files.items():
        if not ((out / name).is_file() or (making / name).is_file()):
            _fetch(address, making / name, progress, pause_s)
    _check(files, out, making)
    for name in sorted(files, key=lambda name: name.endswith(".index")):  # the index last: with it, all is there
        if (making / name).is_file():
            (making / name).replace(out / name)
    shutil.rmtree(making)
    return prefix


def _fetch(address: str, path: Path, progress: Progress, pause_s: float) -> None:
    """Fetch a file, going on as often as it is cut while something comes."""
    tries = 0
    while True:
        before = _size(_part(path))
        try:
            _go_on(address, path, progress)
            return
        except _CutError as error:
            tries = tries + 1 if _size(_part(path)) == before else 1
            if tries >= _TRIES:
                raise ConnectionError(
                    f"{address} cannot be fetched ({error}): try again later, the same command goes on"
                ) from error
            time.sleep(pause_s * 2 ** (tries - 1))


class _CutError(Exception):
    """The connection ended too early; what came is kept."""


def _go_on(address: str, path: Path, progress: Progress) -> None:
    """Fetch what is missing of a file, and check it."""
    part = _part(path)
    have, tag = _size(part), _read_tag(part)
    headers = {"User-Agent": "imagegpt"}
    if have and tag:
        headers |= {"Range": f"bytes={have}-", "If-Range": tag}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=_TIMEOUT_S) as answer:
            begin, total = _announced(answer, have, address)
            _write_tag(part, answer.headers.get("ETag"))
            with part.open("r+b" if begin else "wb") as file:
                file.seek(begin)
                file.truncate()
                while piece := answer.read(min(_PIECE, total - file.tell() + 1)):
                    file.write(piece)
                    progress(path.name, file.tell(), total)
                    if file.tell() > total:
                        raise ConnectionError(f"{address} sends more than the {total:,} bytes it announced: try again")
            expected = answer.headers.get("Content-MD5")
    except urllib.error.HTTPError as error:
        if error.code == 416:  # there is no such range: what is here is not the beginning of what is there
            _forget(part)
            raise _CutError("it has changed") from error
        if error.code >= 500 or error.code == 429:
            raise _CutError(f"{error.code} {error.reason}") from error
        raise ConnectionError(
            f"{address} cannot be fetched ({error.code} {error.reason}): check size and step"
        ) from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionResetError, EOFError) as error:
        raise _CutError(str(getattr(error, "reason", error)) or type(error).__name__) from error
    if _size(part) < total:
        raise _CutError(f"{_size(part):,} of {total:,} bytes came")
    if expected is not None and _md5(part) != expected:
        _forget(part)
        raise ValueError(f"{address} came damaged, its checksum is wrong: the same command fetches it again")
    part.replace(path)
    _forget(part)


def _announced(answer: Any, have: int, address: str) -> tuple[int, int]:
    """Where the answer begins, and how long the whole file is."""
    length = answer.headers.get("Content-Length")
    if answer.status == 206:
        unit, _, rest = answer.headers.get("Content-Range", "").partition(" ")
        span, _, total = rest.partition("/")
        if unit == "bytes" and span.partition("-")[0] == str(have) and total.isdecimal():
            return have, int(total)
        raise ConnectionError(f"{address} answers with another range than was asked for: use another --base")
    if length is None or not length.isdecimal():
        raise ConnectionError(f"{address} does not say how long it is: use another --base")
    return 0, int(length)


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
        _remove_new(error.path, making)
        raise ValueError(f"{error}; the same command fetches it again") from error
    except ValueError as error:
        bad = index if PALETTE_FILE not in str(error) else PALETTE_FILE
        _remove_new(places[bad], making)
        raise ValueError(f"{places[bad].name} came damaged ({error}); the same command fetches it again") from error


def _remove_new(path: Path, making: Path) -> None:
    if path.parent == making:
        path.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _tag_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_tag(part: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return json.loads(_tag_file(part).read_text(encoding="utf-8"))["etag"]
    return None


def _write_tag(part: Path, tag: str | None) -> None:
    _tag_file(part).write_text(json.dumps({"etag": tag}), encoding="utf-8")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag_file(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return base64.b64encode(digest.digest()).decode()
