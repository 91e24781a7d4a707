"""The folder of encoded pictures: what is in it, what it was made from, and what has no place there.

    encoding.json             `EncodingSettings`, and when all is done how many there are and which were broken
    data-00000-of-00030.arrow the pictures of a stretch of the source, in Arrow's streaming format
    preprocessor_config.json  the processor, with the palette
    dataset_info.json, state.json   what `datasets.load_from_disk` wants

A shard appears whole or not at all, and says itself which pictures of its stretch were broken. So the shards that are
there are all the state there is, and the rest is written from them when the last one is done. Several processes may
share the work: each locks the shard that it makes, and the folder while it writes the other files.

Axis letters: n images, T pixels in raster order.
"""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64, UInt16, UInt64

from imagegpt.data.encoding_settings import KIND, BrokenImage, EncodingSettings
from imagegpt.data.examples import in_one_line, missing_library
from imagegpt.files import FORMAT_KEY, LOCK_FILE, atomic_write, check_format, final_name, locked
from imagegpt.palette import PROCESSOR_FILE

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Schema

MANIFEST, INFO_FILE, STATE_FILE, SPLITS_FILE = "encoding.json", "dataset_info.json", "state.json", "dataset_dict.json"

ENCODING_FORMAT = 2  # 1 had no hashes of the pictures

_SHARD = re.compile(r"data-\d{5}-of-\d{5}\.arrow")
_SHARD_LOCK = re.compile(r"\.data-\d{5}-of-\d{5}\.arrow\.lock")
_DOING, _WAIT_S = "encodes images into", 60
_OWN_KEY = b"imagegpt"  # in the description that an Arrow file carries


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What a file that is done has to tell.

    Attributes:
        num_images: in it.
        broken: those of its stretch that are not.
    """

    num_images: int
    broken: list[BrokenImage]


def shard_bytes(
    settings: EncodingSettings,
    ids: UInt16[np.ndarray, "n t"],
    labels: Int64[np.ndarray, " n"],
    indices: Int64[np.ndarray, " n"],
    hashes: UInt64[np.ndarray, " n"],
    broken: Sequence[BrokenImage],
) -> bytes:
    """A shard as it is written: the same pictures give the same bytes."""
    import pyarrow

    length = ids.shape[1]
    columns = [
        pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(ids.reshape(-1)), length),
        pyarrow.array(labels),
        pyarrow.array(indices),
        pyarrow.array(hashes),
    ]
    told = json.dumps([dataclasses.asdict(one) for one in broken])
    schema = _schema(settings).with_metadata({**(_schema(settings).metadata or {}), _OWN_KEY: told.encode()})
    file = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(file, schema) as stream:
        stream.write_batch(pyarrow.record_batch(columns, schema=schema))
    return file.getvalue().to_pybytes()


def open_shard(path: Path) -> "tuple[RecordBatch, list[BrokenImage]]":
    """A shard that is mapped, not read, and what it says of the broken pictures of its stretch.

    Raises: ValueError if it is not whole; OSError if it is not there or cannot be opened; MemoryError.
    """
    import pyarrow

    try:
        with pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))) as stream:
            told = json.loads((stream.schema.metadata or {})[_OWN_KEY])
            return stream.read_next_batch(), [BrokenImage(**one) for one in told]
    except MemoryError:  # Arrow's is an ArrowException, too
        raise
    except (pyarrow.ArrowException, OSError, StopIteration, KeyError, TypeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's: no rights, no memory, no such file
            raise
        raise ValueError(f"{path} is damaged ({in_one_line(error)}): remove it, and encode again") from error


def done_shards(folder: Path, settings: EncodingSettings) -> dict[int, Shard]:
    """The shards that are there, by number. A file that a power cut has emptied is not."""
    found = {number: done_shard(folder, settings, number) for number in range(settings.num_shards)}
    return {number: shard for number, shard in found.items() if shard is not None}


def done_shard(folder: Path, settings: EncodingSettings, number: int) -> Shard | None:
    """What a shard holds; None if it is not there, or not whole."""
    try:
        batch, broken = open_shard(folder / settings.file(number))
    except (FileNotFoundError, ValueError):
        return None
    is_whole = batch.num_rows + len(broken) == len(settings.stretch(number))
    return Shard(num_images=batch.num_rows, broken=broken) if is_whole else None


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The contents of a folder's `encoding.json`, None if there is none.

    Raises: ValueError if it is not ours, damaged, or of another version.
    """
    path = folder / MANIFEST
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        EncodingSettings.from_json(fields)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} was not written by imagegpt or is damaged: choose another folder") from error
    remedy = "encode the pictures again, into another folder"
    check_format(fields, ENCODING_FORMAT, what=str(path), remedy=remedy)
    return fields


def write_manifest(folder: Path, settings: EncodingSettings, shards: Mapping[int, Shard] | None) -> None:
    """Write `encoding.json`: the settings, and, if all shards are there, what they hold."""
    fields: dict[str, Any] = {"kind": KIND, FORMAT_KEY: ENCODING_FORMAT, "finished": shards is not None}
    fields |= dataclasses.asdict(settings)
    if shards is not None:
        several = [shards[number] for number in range(settings.num_shards)]
        broken = [dataclasses.asdict(one) for shard in several for one in shard.broken]
        fields |= {
            "num_images": sum(shard.num_images for shard in several),
            "num_broken": len(broken),
            "broken": broken,
        }
    content = json.dumps(fields, indent=2) + "\n"
    atomic_write(folder / MANIFEST, content.encode(), "the settings of the encoding")


def write_descriptions(folder: Path, settings: EncodingSettings, fingerprint: str) -> None:
    """Write what `datasets.load_from_disk` looks for."""
    info = {"description": f"Images as ids of the palette {settings.palette}", "features": _features(settings)}
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


def _features(settings: EncodingSettings) -> dict[str, Any]:
    """The columns in `datasets`' words. Written by hand: the library takes seconds to import, in every worker."""
    height, width = settings.size
    number = {"dtype": "int64", "_type": "Value"}
    label = number if settings.classes is None else {"names": settings.classes, "_type": "ClassLabel"}
    ids = {"feature": {"dtype": "uint16", "_type": "Value"}, "length": height * width, "_type": "List"}
    return {"ids": ids, "label": label, "index": number, "pixel_hash": {"dtype": "uint64", "_type": "Value"}}


def _schema(settings: EncodingSettings) -> "Schema":
    import pyarrow

    height, width = settings.size
    fields = {
        "ids": pyarrow.list_(pyarrow.uint16(), height * width),
        "label": pyarrow.int64(),
        "index": pyarrow.int64(),
        "pixel_hash": pyarrow.uint64(),
    }
    described = json.dumps({"info": {"features": _features(settings)}}).encode()
    return pyarrow.schema(list(fields.items()), {b"huggingface": described})
