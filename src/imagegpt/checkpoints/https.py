"""Download of a file over HTTPS: resumable, limited in size, with its checksum verified if the server sends one.

    FOLDER/NAME.part         the bytes received so far
    FOLDER/NAME.part.json    the ETag of the version they belong to
    FOLDER/NAME              the complete file

Only HTTPS is allowed, and HTTP to this machine; redirects too.
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

_MAX_ATTEMPTS = 5  # in a row without a new byte
_RETRY_DELAY_S = 1.0  # before the first retry, doubled each time
_TIMEOUT_S = 60
_CHUNK_BYTES = 1 << 18

Progress = Callable[[str, int, int], None]


def check_url(url: str) -> None:
    """Check that a URL is HTTPS, or HTTP to this machine.

    Raises: ValueError if not.
    """
    if not _is_allowed(url):
        raise ValueError(f"the URL is {url!r:.200}: give https://, or http:// to this machine")


def download_file(url: str, path: Path, max_bytes: int, progress: Progress) -> None:
    """Download a file, retrying and resuming as long as new bytes arrive.

    Args:
        path: destination; its folder must exist.
        progress: called with the file's name, the bytes received and the total.
    Raises: ConnectionError if the server cannot be reached, or sends something unexpected or too large; ValueError if
        the file is damaged; OSError, unchanged, if it cannot be written.
    """
    attempts = 0
    while True:
        before = _size(_part_path(path))
        try:
            _download_rest(url, path, max_bytes, progress)
            return
        except _InterruptedError as error:
            attempts = attempts + 1 if _size(_part_path(path)) == before else 1
            if attempts >= _MAX_ATTEMPTS:
                raise ConnectionError(
                    f"cannot download {url} ({error}): try again later, the same command resumes"
                ) from error
            time.sleep(_RETRY_DELAY_S * 2 ** (attempts - 1))


class _InterruptedError(Exception):
    """Raised if the connection ends early; the bytes received stay."""


class _RedirectHandler(urllib.request.HTTPRedirectHandler):
    """Follows redirects to allowed URLs, but not from other machines to this one."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        if not _is_allowed(newurl) or (_is_local(newurl) and not _is_local(req.full_url)):
            raise ConnectionError(
                f"{req.full_url} redirects to {newurl:.200}, but only https is followed: use another --base"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_allowed(url: str) -> bool:
    scheme = urllib.parse.urlsplit(url).scheme
    return scheme == "https" or (scheme == "http" and _is_local(url))


def _is_local(url: str) -> bool:
    """Whether a URL's host is this machine."""
    host = urllib.parse.urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def _download_rest(url: str, path: Path, max_bytes: int, progress: Progress) -> None:
    """Download the missing bytes of a file, verify it, and move it to its destination."""
    part = _part_path(path)
    try:
        total, md5 = _receive(url, part, max_bytes, lambda received, total: progress(path.name, received, total))
    except urllib.error.HTTPError as error:
        if error.code == 416:  # range not satisfiable: the partial file is of another version
            _remove_part(part)
            raise _InterruptedError("the file has changed") from error
        if error.code >= 500 or error.code == 429:
            raise _InterruptedError(f"{error.code} {error.reason}") from error
        raise ConnectionError(f"cannot download {url} ({error.code} {error.reason}): check size and step") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionResetError, EOFError) as error:
        raise _InterruptedError(str(getattr(error, "reason", error)) or type(error).__name__) from error
    if _size(part) < total:
        raise _InterruptedError(f"received {_size(part):,} of {total:,} bytes")
    if md5 is not None and _md5(part) != md5:
        _remove_part(part)
        raise ValueError(f"{url} arrived damaged, its checksum is wrong: the same command downloads it again")
    part.replace(path)
    _remove_part(part)


def _receive(url: str, part: Path, max_bytes: int, progress: Callable[[int, int], None]) -> tuple[int, str | None]:
    """Append the missing bytes to a partial file; return the total size and the server's MD5, if any."""
    num_received, etag = _size(part), _read_etag(part)
    headers = {"User-Agent": "imagegpt"}
    if num_received and etag:
        headers |= {"Range": f"bytes={num_received}-", "If-Range": etag}
    opener = urllib.request.build_opener(_RedirectHandler)
    with opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S) as response:
        start, total = _parse_range(response, num_received, url)
        if total > max_bytes:
            raise ConnectionError(
                f"{url} has {total:,} bytes, but at most {max_bytes:,} are expected: use another --base"
            )
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            file.truncate()
            etag = json.dumps({"etag": response.headers.get("ETag")})
            _etag_path(part).write_text(etag, encoding="utf-8")  # only now that no bytes of another version remain
            while chunk := _read_chunk(response, min(_CHUNK_BYTES, total - file.tell() + 1)):
                file.write(chunk)
                progress(file.tell(), total)
                if file.tell() > total:
                    raise ConnectionError(f"{url} sends more than the {total:,} bytes it announced: try again")
        return total, response.headers.get("Content-MD5")


def _read_chunk(response: Any, num_bytes: int) -> bytes:
    """Read from a response; an OSError here comes from the network, elsewhere from the disk."""
    try:
        return response.read(num_bytes)
    except OSError as error:
        raise _InterruptedError(error.strerror or type(error).__name__) from error


def _parse_range(response: Any, num_received: int, url: str) -> tuple[int, int]:
    """Return the offset at which the response starts, and the size of the whole file."""
    length = response.headers.get("Content-Length")
    if response.status == 206:
        unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
        span, _, total = rest.partition("/")
        if unit == "bytes" and span.partition("-")[0] == str(num_received) and total.isdecimal():
            return num_received, int(total)
        raise ConnectionError(f"{url} answers with another range than requested: use another --base")
    if length is None or not length.isdecimal():
        raise ConnectionError(f"{url} does not announce its size: use another --base")
    return 0, int(length)


def _part_path(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _etag_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_etag(part: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return json.loads(_etag_path(part).read_text(encoding="utf-8"))["etag"]
    return None


def _remove_part(part: Path) -> None:
    part.unlink(missing_ok=True)
    _etag_path(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return base64.b64encode(digest.digest()).decode()
