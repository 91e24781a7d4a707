"""Fetching a file over https: resumed where it was cut, bounded in size, its checksum verified if the server sends one.

    FOLDER/NAME.part         what has come so far
    FOLDER/NAME.part.json    of which version of the file, by its ETag
    FOLDER/NAME              all of it

Only https is spoken, and http to this machine, whatever a server redirects to.
"""

import base64
import contextlib
import hashlib
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

_TRIES = 5  # without a byte in between
_TIMEOUT_S = 60
_PIECE = 1 << 18

Progress = Callable[[str, int, int], None]


def check_address(address: str) -> None:
    """See that an address is one of https, or of http on this machine.

    Raises: ValueError if not.
    """
    if not _is_allowed(address):
        raise ValueError(f"the address is {address!r:.200}: give one of https://, or of http:// on this machine")


def fetch(address: str, path: Path, limit: int, progress: Progress, pause_s: float) -> None:
    """Fetch a file, going on as often as it is cut while something comes.

    Args:
        address: of the file.
        path: where to put it; its folder must exist.
        limit: bytes, more of which are not taken.
        progress: called with the file's name, the bytes that are there and the bytes there will be.
        pause_s: before the address is tried again, doubled each time.
    Raises: ConnectionError if the server cannot be reached, sends something else or too much; ValueError if what came
        is damaged; OSError, the system's own, if it cannot be written.
    """
    tries = 0
    while True:
        before = _size(_part(path))
        try:
            _go_on(address, path, limit, progress)
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


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to addresses that could have been given, but from elsewhere to this machine none."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        if not _is_allowed(newurl) or (_is_here(newurl) and not _is_here(req.full_url)):
            raise ConnectionError(
                f"{req.full_url} redirects to {newurl:.200}, and only https is followed: use another --base"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_allowed(address: str) -> bool:
    scheme = urllib.parse.urlsplit(address).scheme
    return scheme == "https" or (scheme == "http" and _is_here(address))


def _is_here(address: str) -> bool:
    """Whether an address is one of this machine's own."""
    host = urllib.parse.urlsplit(address).hostname or ""
    with contextlib.suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def _go_on(address: str, path: Path, limit: int, progress: Progress) -> None:
    """Fetch what is missing of a file, and check it."""
    part = _part(path)
    have, tag = _size(part), _read_tag(part)
    headers = {"User-Agent": "imagegpt"}
    if have and tag:
        headers |= {"Range": f"bytes={have}-", "If-Range": tag}
    try:
        opener = urllib.request.build_opener(_Redirects)
        with opener.open(urllib.request.Request(address, headers=headers), timeout=_TIMEOUT_S) as answer:
            begin, total = _announced(answer, have, address)
            if total > limit:
                raise ConnectionError(
                    f"{address} has {total:,} bytes, and no more than {limit:,} are needed: use another --base"
                )
            with part.open("r+b" if begin else "wb") as file:
                file.seek(begin)
                file.truncate()
                _write_tag(part, answer.headers.get("ETag"))  # now that nothing of another version is there
                while piece := _read(answer, min(_PIECE, total - file.tell() + 1)):
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


def _read(answer: Any, num_bytes: int) -> bytes:
    """Some bytes of an answer; the system's errors here are the network's, all others are the disk's."""
    try:
        return answer.read(num_bytes)
    except OSError as error:
        raise _CutError(error.strerror or type(error).__name__) from error


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
