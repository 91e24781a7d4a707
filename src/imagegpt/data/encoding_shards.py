"""A shard: a file of an encoding, with the ids of a stretch of the source's pictures, in Arrow's streaming format.

Axis letters: n images, T pixels in raster order.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64, UInt16, UInt64

from imagegpt.data.broken_images import BrokenImage
from imagegpt.data.encoding_settings import EncodingSettings
from imagegpt.data.sources.base import UNLABELED, in_one_line
from imagegpt.files.checksums import sha256_of
from imagegpt.files.schemas import parse_json, validate

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Schema

_OWN_KEY = b"imagegpt"  # in the description that an Arrow file carries


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What a file that is done has to tell.

    Attributes:
        num_images: in it.
        broken: those of its stretch that are not.
        checksum: the SHA-256 of the file.
    """

    num_images: int
    broken: list[BrokenImage]
    checksum: str


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

    Nothing is checked but that Arrow can open it; for the rest see `check_shard`.

    Raises: ValueError, without the path, if it is not whole; OSError if it is not there or cannot be opened;
        MemoryError.
    """
    import pyarrow

    try:
        with pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))) as stream:
            told = parse_json((stream.schema.metadata or {})[_OWN_KEY], "its list of broken pictures")
            return stream.read_next_batch(), validate(told, list[BrokenImage], "its list of broken pictures")
    except MemoryError:  # Arrow's is an ArrowException, too
        raise
    except (pyarrow.ArrowException, OSError, StopIteration, KeyError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's: no rights, no memory, no such file
            raise
        raise ValueError(in_one_line(error)) from error


def check_shard(path: Path, settings: EncodingSettings, number: int, checksum: str | None) -> Shard:
    """See that a shard is what was written there, byte for byte, and that its contents are possible.

    Args:
        path: of the shard, which is read as a whole.
        settings: of the encoding.
        number: of the shard.
        checksum: the SHA-256 that it must have; None is none that could be right.
    Raises: as `open_shard`.
    """
    found = sha256_of(path)
    if found != checksum:
        raise ValueError("its SHA-256 is not the one that was written down")
    batch, broken = open_shard(path)
    _check_contents(batch, broken, settings, number)
    return Shard(num_images=batch.num_rows, broken=broken, checksum=found)


def features(settings: EncodingSettings) -> dict[str, Any]:
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
    described = json.dumps({"info": {"features": features(settings)}}).encode()
    return pyarrow.schema(list(fields.items()), {b"huggingface": described})


def _check_contents(
    batch: "RecordBatch", broken: Sequence[BrokenImage], settings: EncodingSettings, number: int
) -> None:
    """See that a shard can be used: somebody else may have written it, and its checksum, too.

    Raises: ValueError if not.
    """
    import pyarrow

    if not batch.schema.equals(_schema(settings)):
        raise ValueError("its columns are not those of this encoding")
    try:
        batch.validate(full=True)
    except pyarrow.ArrowException as error:
        raise ValueError(in_one_line(error)) from error
    ids, labels = batch.column("ids").values, batch.column("label")
    if any(column.null_count for column in (*batch.columns, ids)):
        raise ValueError("it has empty cells")
    if sorted([*batch.column("index").to_pylist(), *(one.index for one in broken)]) != list(settings.stretch(number)):
        raise ValueError("its images are not those of its stretch of the source")
    if len(ids) and ids.to_numpy().max() >= settings.num_colors:
        raise ValueError(f"it has ids beyond the {settings.num_colors} colours of the palette")
    num_labels = np.iinfo(np.int64).max if settings.classes is None else len(settings.classes)
    if len(labels) and not (labels.to_numpy().min() >= UNLABELED and labels.to_numpy().max() < num_labels):
        raise ValueError("it has labels that are no class")
