"""The folder of encoded pictures: what is in it, what it was made from, and what has no place there.

    encoding.json             `EncodingSettings`, the SHA-256 of each shard, and when all is done how many images there
                              are and which were broken
    data-00000-of-00030.arrow the pictures of a stretch of the source, in Arrow's streaming format
    preprocessor_config.json  the processor, with the palette
    dataset_info.json, state.json   what `datasets.load_from_disk` wants

A shard appears whole or not at all, after its checksum was written into `encoding.json`, and says itself which pictures
of its stretch were broken. It is done when it is there and has this checksum. Whoever opens the folder, to go on with
it or to read the images, looks at that first, so that no damaged byte becomes other pixels unnoticed; it costs about a
second for each gigabyte and core (`examine_shards`). Several processes may share the work: each locks the shard that it
makes, and the folder while it writes the other files.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagegpt.data.encoding_settings import KIND, EncodingSettings
from imagegpt.data.encoding_shards import Shard, check_shard, features
from imagegpt.data.sources.base import missing_library
from imagegpt.files.atomic import atomic_write, final_name
from imagegpt.files.locks import LOCK_FILE, locked
from imagegpt.files.schemas import validate
from imagegpt.files.versions import FORMAT_KEY, read_own
from imagegpt.images.palette import PROCESSOR_FILE

MANIFEST, INFO_FILE, STATE_FILE, SPLITS_FILE = "encoding.json", "dataset_info.json", "state.json", "dataset_dict.json"

ENCODING_FORMAT = 3  # 1 had no hashes of the pictures, 2 no checksums of the shards

_MAX_MANIFEST_BYTES = 1 << 26  # 250,000 broken pictures

_SHARD = re.compile(r"data-\d{5}-of-\d{5}\.arrow")
_SHARD_LOCK = re.compile(r"\.data-\d{5}-of-\d{5}\.arrow\.lock")
_DOING, _WAIT_S = "encodes images into", 60


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of `encoding.json`.

    Attributes:
        settings: of the encoding.
        finished: whether all its shards were made.
        checksums: the SHA-256 of each shard that was made, by the name of its file.
    """

    settings: EncodingSettings
    finished: bool
    checksums: Mapping[str, str]


def examine_shards(folder: Path, manifest: Manifest, numbers: Iterable[int]) -> tuple[dict[int, Shard], list[str]]:
    """See which shards are there and whole. They are read: about a second for each gigabyte and core.

    Args:
        folder: of the encoding.
        manifest: of it.
        numbers: of the shards to look at.
    Returns: what the shards hold that are done, by number, and what is wrong with each of the others.
    Raises: OSError of the system other than that a file is not there; MemoryError.
    """
    settings = manifest.settings

    def examine(number: int) -> Shard | str | None:
        path = folder / settings.file(number)
        try:
            return check_shard(path, settings, number, manifest.checksums.get(path.name))
        except FileNotFoundError:
            return f"{path} is missing" if manifest.finished else None
        except ValueError as error:
            return f"{path} is damaged ({error})"

    numbers = list(numbers)
    with ThreadPoolExecutor() as threads:  # hashing lets go of Python's lock
        found = dict(zip(numbers, threads.map(examine, numbers), strict=True))
    shards = {number: one for number, one in found.items() if isinstance(one, Shard)}
    return shards, [one for one in found.values() if isinstance(one, str)]


def read_manifest(folder: Path) -> Manifest | None:
    """The contents of a folder's `encoding.json`, None if there is none.

    Raises: ValueError if it is not ours, damaged, or of another version.
    """
    path = folder / MANIFEST
    remedy = "encode the pictures again, into another folder"
    try:
        fields = read_own(
            path, dict[str, Any], ENCODING_FORMAT, kind=KIND, remedy=remedy, max_bytes=_MAX_MANIFEST_BYTES
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        settings = validate(fields, EncodingSettings, f"{path} is damaged")
        return validate({**fields, "settings": settings}, Manifest, f"{path} is damaged")
    except ValueError as error:
        raise ValueError(f"{error}; {remedy}") from error


def write_manifest(
    folder: Path, settings: EncodingSettings, checksums: Mapping[str, str], shards: Mapping[int, Shard] | None = None
) -> None:
    """Write `encoding.json`.

    Args:
        folder: of the encoding, which must be locked.
        settings: of it.
        checksums: of the shards that are there.
        shards: all of them, if it is finished, for what they hold.
    """
    fields: dict[str, Any] = {"kind": KIND, FORMAT_KEY: ENCODING_FORMAT, "finished": shards is not None}
    fields |= {**dataclasses.asdict(settings), "checksums": dict(sorted(checksums.items()))}
    if shards is not None:
        broken = [dataclasses.asdict(one) for number in sorted(shards) for one in shards[number].broken]
        fields |= {
            "num_images": sum(shard.num_images for shard in shards.values()),
            "num_broken": len(broken),
            "broken": broken,
        }
    content = json.dumps(fields, indent=2) + "\n"
    atomic_write(folder / MANIFEST, content.encode(), "the settings of the encoding")


def record_shard(folder: Path, settings: EncodingSettings, name: str, content: bytes) -> str:
    """Write the checksum of a shard into `encoding.json`, before the shard itself, which is not done without it.

    Returns: the checksum.
    """
    checksum = hashlib.sha256(content).hexdigest()
    with folder_locked(folder):
        there = read_manifest(folder)
        write_manifest(folder, settings, {**(there.checksums if there else {}), name: checksum})
    return checksum


def write_descriptions(folder: Path, settings: EncodingSettings, fingerprint: str) -> None:
    """Write what `datasets.load_from_disk` looks for."""
    info = {"description": f"Images as ids of the palette {settings.palette}", "features": features(settings)}
    state = {
        "_data_files": [{"filename": settings.file(number)} for number in range(settings.num_shards)],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": settings.split,
    }
    for name, fields in {INFO_FILE: info, STATE_FILE: state}.items():
        atomic_write(folder / name, (json.dumps(fields, indent=2) + "\n").encode(), "the description of the data set")


def check_folder(folder: Path, names: Sequence[str] = ()) -> None:
    """See that an encoding may use a folder: it is not there yet, is empty, or holds an encoding and nothing else.

    Args:
        folder: of one split, or of several.
        names: of the splits; none if the folder holds the shards themselves.
    Raises: ValueError or OSError, in one sentence, if not. Nothing is changed.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: encoded images need a folder")
    if not folder.exists() and not folder.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {folder.parent}: make it first, or choose another place")
    own = {SPLITS_FILE, PROCESSOR_FILE, *names} if names else {MANIFEST, INFO_FILE, STATE_FILE, PROCESSOR_FILE}
    for name in sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []:
        final = final_name(name)
        is_ours = name == LOCK_FILE or final in own
        if not is_ours and (names or not (_SHARD.fullmatch(final) or _SHARD_LOCK.fullmatch(name))):
            raise ValueError(
                f"{folder} holds {name}, which is no part of this encoding: move it away or choose another folder"
            )


def folder_locked(folder: Path) -> AbstractContextManager[None]:
    """Keep other processes from writing anything but shards, for a moment; waits for them if they do so now.

    Raises: BusyError if they do so for a minute; OSError if nothing can be locked there.
    """
    return locked(folder, _DOING, wait_s=_WAIT_S)


def shard_locked(folder: Path, shard: str, wait_s: float) -> AbstractContextManager[None]:
    """Keep other processes from making a shard.

    Args:
        folder: of the encoding.
        shard: the name of its file.
        wait_s: how long to wait for another process that is making it.
    Raises: BusyError if that process is not done by then; OSError if nothing can be locked there.
    """
    return locked(folder, _DOING, name=f".{shard}.lock", wait_s=wait_s)


def remove_temporaries(folder: Path, shard: str | None = None) -> None:
    """Remove what a killed process left half written of a shard, or of everything else; it must be locked."""
    for path in folder.iterdir():
        final = final_name(path.name)
        if final != path.name and (final == shard if shard else not _SHARD.fullmatch(final)):
            path.unlink(missing_ok=True)


def remove_shard_locks(folder: Path) -> None:
    """Remove the files by which shards were locked; all shards must be there."""
    for path in folder.iterdir():
        if _SHARD_LOCK.fullmatch(path.name):
            with contextlib.suppress(OSError):  # on Windows another process may have it open
                path.unlink()


def check_pyarrow() -> None:
    """See that shards can be written here.

    Raises: ValueError if the library is missing.
    """
    try:
        import pyarrow  # noqa: F401 - whether it is there
    except ImportError as error:
        raise missing_library("encoding images") from error
