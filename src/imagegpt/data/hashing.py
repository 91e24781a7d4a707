"""Hashes of files and of images, computed once: a cache in the user's folder saves reading what has not changed.

A file counts as unchanged while its path, size and times of modification and of change are the same. The cache only
saves time: it may be missing, damaged, out of date or read-only.

Axis letters: N images of a source, n of them.
"""

import contextlib
import hashlib
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt64

from imagegpt.common.devices import num_cores
from imagegpt.data.broken_images import BrokenImage
from imagegpt.data.identity import pixel_hash
from imagegpt.data.sources.base import ImageSource
from imagegpt.files.atomic import atomic_write
from imagegpt.files.paths import cache_folder

CACHE_FORMAT = 2  # increase it when images are decoded to other pixels than before, too

_HEADER = b"imagegpt hashes %d\n" % CACHE_FORMAT
_BLOCK_BYTES = 1 << 22  # read at a time
_SETTLED_NS = 2_000_000_000  # a file that changed more recently may change again without changing its times
_MIN_FILES_FOR_PROCESSES = 2_000  # a process takes seconds to start
_TASK_IMAGES = 256

Hashes = UInt64[np.ndarray, " n"]


@dataclass(frozen=True, kw_only=True)
class SourceHashes:
    """The pixel hashes of a source.

    Attributes:
        hashes: of its images; 0 for images that cannot be read.
        broken: the images that cannot be read, in ascending order.
    """

    hashes: UInt64[np.ndarray, " N"]
    broken: list[BrokenImage]


def source_fingerprint(source: ImageSource) -> str:
    """Return 16 hexadecimal digits that change when images, labels, classes or their order change.

    File names do not count. Reads the bytes of every file, but not of those that have not changed since the last time.
    """
    if source.fingerprint is not None:
        return source.fingerprint
    digest = hashlib.blake2b(digest_size=8)
    for text in (str(len(source)), *(source.classes or ())):
        digest.update(text.encode(errors="surrogateescape") + b"\0")
    digest.update(np.ascontiguousarray(source.labels).data)
    files = list(source.files())
    stamps, settled = _stamps(files)
    cache = _Cache("files", source)
    hashes, known = cache.find(stamps)
    missing = np.flatnonzero(~known)
    if len(missing):
        with ThreadPoolExecutor() as threads:  # reading and hashing release the GIL
            hashes[missing] = list(threads.map(_file_hash, (files[index] for index in missing), chunksize=64))
        cache.keep(stamps, hashes, settled)
    digest.update((hashes if files else pixel_hashes(source).hashes).data)
    return digest.hexdigest()


def source_stamp(source: ImageSource) -> str:
    """Like `source_fingerprint`, but from path, size and times of the files: cheap, for checks within minutes."""
    if source.fingerprint is not None:
        return source.fingerprint
    digest = hashlib.blake2b(str((len(source), source.classes)).encode(errors="surrogateescape"), digest_size=8)
    digest.update(np.ascontiguousarray(source.labels).data)
    digest.update(_stamps(list(source.files()))[0].data)
    return digest.hexdigest()


def pixel_hashes(source: ImageSource) -> SourceHashes:
    """Compute the `identity.pixel_hash` of each image; files that have not changed are not read again."""
    stamps, settled = _picture_stamps(source)
    cache = _Cache("pixels", source)
    hashes, known = cache.find(stamps)
    missing = np.flatnonzero(~known)
    broken: list[BrokenImage] = []
    if len(missing):
        for rows, (found, unreadable) in _read(source, missing):
            hashes[rows] = found
            broken += unreadable
        cache.keep(stamps, hashes, settled & (hashes != 0))
    return SourceHashes(hashes=hashes, broken=broken)


class _Cache:
    """Hashes by the stamps of files or images; one cache file for each source, replaced as a whole."""

    def __init__(self, kind: str, source: ImageSource) -> None:
        name = hashlib.blake2b(os.fsencode(f"{source.location}\0{source.split}"), digest_size=12).hexdigest()
        self._path = cache_folder() / "hashes" / f"{name}-{kind}"

    def find(self, stamps: Hashes) -> tuple[Hashes, Bool[np.ndarray, " n"]]:
        """Return the cached hashes, 0 where there is none, and which are cached."""
        there = self._read()
        if not len(there):
            return np.zeros(len(stamps), np.uint64), np.zeros(len(stamps), bool)
        place = np.searchsorted(there[:, 0], stamps).clip(max=len(there) - 1)
        known = there[place, 0] == stamps
        return np.where(known, there[place, 1], np.uint64(0)), known

    def keep(self, stamps: Hashes, hashes: Hashes, chosen: Bool[np.ndarray, " n"]) -> None:
        """Replace the cached hashes; errors are ignored."""
        pairs = np.stack([stamps[chosen], hashes[chosen]], axis=1)
        content = pairs[np.argsort(pairs[:, 0])].astype("<u8").tobytes()
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            for path in self._path.parent.glob(f".{self._path.name}.*"):  # left by a killed process
                path.unlink(missing_ok=True)
            atomic_write(self._path, _HEADER + _checksum(content) + content, "the hashes")

    def _read(self) -> UInt64[np.ndarray, "m 2"]:
        with contextlib.suppress(OSError):
            whole = self._path.read_bytes()
            checksum, content = whole[len(_HEADER) :][:16], whole[len(_HEADER) + 16 :]
            if whole.startswith(_HEADER) and checksum == _checksum(content) and len(content) % 16 == 0:
                return np.frombuffer(content, "<u8").reshape(-1, 2).astype(np.uint64)
        return np.empty((0, 2), np.uint64)


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _picture_stamps(source: ImageSource) -> tuple[Hashes, Bool[np.ndarray, " N"]]:
    """Return a number for each image that changes with its file, and which files have not changed recently."""
    stamps, settled = _stamps(list(source.files()))
    if source.has_a_file_each:
        return stamps, settled
    key = hashlib.blake2b(stamps.data, digest_size=32).digest()
    several = (hashlib.blake2b(b"%d" % index, key=key, digest_size=8).digest() for index in range(len(source)))
    return np.frombuffer(b"".join(several), np.uint64), np.full(len(source), bool(len(stamps) and settled.all()))


def _stamps(files: Sequence[Path]) -> tuple[Hashes, Bool[np.ndarray, " n"]]:
    """Return a number for each file that changes with its path, size and times, and which are not recent."""
    stamps, settled = np.zeros(len(files), np.uint64), np.zeros(len(files), bool)
    now = time.time_ns()
    for row, path in enumerate(files):
        try:
            facts = path.stat()
        except OSError:
            continue  # reading it will report the error
        # Only the system sets the time of change: it reveals a file that was replaced and dated back.
        text = f"{path.absolute()}\0{facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}"
        digest = hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest()
        stamps[row] = int.from_bytes(digest, "little")
        settled[row] = now - max(facts.st_mtime_ns, facts.st_ctime_ns) > _SETTLED_NS
    return stamps, settled


def _file_hash(path: Path) -> int:
    digest = hashlib.blake2b(digest_size=8)
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError:
        return 0
    return int.from_bytes(digest.digest(), "little")


def _read(source: ImageSource, missing: np.ndarray) -> Iterator[tuple[np.ndarray, tuple[list[int], list[BrokenImage]]]]:
    """Yield hashes of images, some at a time; by several processes if there are many files to decode."""
    tasks = [missing[start : start + _TASK_IMAGES] for start in range(0, len(missing), _TASK_IMAGES)]
    workers = num_cores()
    if not source.has_a_file_each or len(missing) < _MIN_FILES_FOR_PROCESSES or workers == 1:
        yield from ((task, _hash_several(source, task.tolist())) for task in tasks)
        return
    # Not threads: decoding an image changes the filter of warnings for a moment, which all threads share.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (source,)) as pool:
        yield from zip(tasks, pool.map(_hash_in_worker, (task.tolist() for task in tasks)), strict=True)


def _hash_several(source: ImageSource, indices: Iterable[int]) -> tuple[list[int], list[BrokenImage]]:
    found = list(source.read_each(indices, lambda example: pixel_hash(example.image)))
    return [one if isinstance(one, int) else 0 for one in found], [one for one in found if not isinstance(one, int)]


# The source of a worker process: a pool can pass it to a process, rather than to every task, only through a global.
_sources: list[Any] = []


def _start_worker(source: ImageSource) -> None:
    _sources.append(source)


def _hash_in_worker(indices: list[int]) -> tuple[list[int], list[BrokenImage]]:
    return _hash_several(_sources[0], indices)
