"""Reading and writing the manifest of a folder of encoded images, and verifying its shards.

    encoding.json             `EncodingSettings`; when finished, also the SHA-256 of each shard, the number of images,
                              and the broken images
    data-00000-of-00030.arrow the ids of consecutive images of the source (or .parquet)
    preprocessor_config.json  the processor, with the palette
    dataset_info.json, state.json   for `datasets.load_from_disk`, beside Arrow shards
    dataset_dict.json         in place of all that, the names of the splits, which are folders like this one

The shards are written by `imagegpt.jobs.encode`. Whoever reads them verifies their checksums first, so that no damaged
byte becomes another pixel unnoticed.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagegpt.data.encoding_shards import EncodingSettings, Shard, shard_damage
from imagegpt.data.sources.saved import saved_splits
from imagegpt.files.atomic import atomic_write
from imagegpt.files.schemas import validate
from imagegpt.files.versions import FORMAT_KEY, read_versioned_json

MANIFEST, INFO_FILE = "encoding.json", "dataset_info.json"

ENCODING_FORMAT = 4  # 1 had no hashes of the images, 2 no checksums of the shards, 3 no markers of finished shards

_KIND = "images encoded by imagegpt"
_MAX_MANIFEST_BYTES = 1 << 26  # 250,000 broken images


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `encoding.json`.

    Attributes:
        settings: of the encoding.
        finished: whether all shards were made.
        source_stamp: of the files that `source_fingerprint` was computed from, until the encoding is finished.
        checksums: the SHA-256 of each shard by its file name; empty until the encoding is finished.
    """

    settings: EncodingSettings
    finished: bool
    source_stamp: str | None = None
    checksums: Mapping[str, str]


def is_encoded(folder: Path) -> bool:
    """Whether a folder, or that of one of its splits, was written by `imagegpt encode`."""
    return any((folder / split / MANIFEST).is_file() for split in ("", "train", *saved_splits(folder)))


def verify_shards(folder: Path, manifest: Manifest) -> list[str]:
    """Read all shards and compare their checksums: about a second per gigabyte and core.

    Returns: for each missing or damaged shard a clause, such as "out/data-00000-of-00030.arrow is missing".
    Raises: OSError from the system, unless a file does not exist; MemoryError.
    """
    settings = manifest.settings

    def verify(number: int) -> list[str]:
        return shard_damage(folder, settings, number, manifest.checksums.get(settings.file(number)))

    with ThreadPoolExecutor() as threads:  # hashing releases Python's lock
        return [clause for clauses in threads.map(verify, range(settings.num_shards)) for clause in clauses]


def read_manifest(folder: Path) -> Manifest | None:
    """Read a folder's `encoding.json`; None if there is none.

    Raises: ValueError if it is not ours, damaged, or of another version.
    """
    path = folder / MANIFEST
    remedy = "encode the images again, into another folder"
    try:
        fields = read_versioned_json(
            path, dict[str, Any], ENCODING_FORMAT, kind=_KIND, remedy=remedy, max_bytes=_MAX_MANIFEST_BYTES
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        settings = validate(fields, EncodingSettings, f"{path} is damaged")
        return validate({**fields, "settings": settings}, Manifest, f"{path} is damaged")
    except ValueError as error:
        raise ValueError(f"{error}; {remedy}") from error


def write_manifest(
    folder: Path, settings: EncodingSettings, shards: Sequence[Shard] = (), source_stamp: str | None = None
) -> None:
    """Write `encoding.json`.

    Args:
        folder: of the encoding, which must be locked.
        settings: of the encoding.
        shards: all of them in order, if the encoding is finished.
        source_stamp: see `Manifest`; None if the encoding is finished.
    """
    finished = source_stamp is None
    checksums = {settings.file(number): shard.checksum for number, shard in enumerate(shards)}
    fields: dict[str, Any] = {"kind": _KIND, FORMAT_KEY: ENCODING_FORMAT, "finished": finished}
    fields |= {**dataclasses.asdict(settings), "checksums": checksums}
    if finished:
        broken = [dataclasses.asdict(one) for shard in shards for one in shard.broken]
        fields |= {"num_images": sum(shard.num_images for shard in shards), "num_broken": len(broken), "broken": broken}
    else:
        fields["source_stamp"] = source_stamp
    content = json.dumps(fields, indent=2) + "\n"
    atomic_write(folder / MANIFEST, content.encode(), "the settings of the encoding")
