"""The settings of an encoding, and its shards: files with the ids of consecutive images of the source.

A shard is an Arrow stream, which is memory-mapped, or a parquet file, which is read into memory.

Axis letters: n images, T pixels in raster order.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from jaxtyping import Int64, UInt16, UInt64

from imagegpt.common import ranges
from imagegpt.common.pydantic_ranges import InRange
from imagegpt.common.text import truncate
from imagegpt.data.broken_images import BrokenImage
from imagegpt.data.sources.base import UNLABELED, in_one_line
from imagegpt.files.checksums import file_sha256
from imagegpt.files.schemas import parse_json, validate

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Schema

ShardFormat = Literal["arrow", "parquet"]

_OWN_KEY = b"imagegpt"  # in the metadata of the schema


@dataclass(frozen=True, kw_only=True)
class EncodingSettings:
    """Everything that determines the content of the shards.

    Args:
        source: its absolute path, or its name.
        split: of the source; None if it has none.
        source_fingerprint: a hash of the content of its files.
        num_source: images in it, broken or not.
        classes: the names of the labels; None if there are none.
        palette: its fingerprint.
        num_colors: of the palette.
        processor: its other settings: size, resize_mode, resample, background.
        shard_size: images of the source per shard.
        file_format: of the shards.
        version: of this package.
    """

    source: str
    split: str | None
    source_fingerprint: str
    num_source: Annotated[int, InRange(ranges.DATASET_SIZE)]
    classes: list[str] | None
    palette: str
    num_colors: Annotated[int, InRange(ranges.COLORS)]
    processor: dict[str, Any]
    shard_size: Annotated[int, InRange(ranges.SHARD_IMAGES)]
    file_format: ShardFormat
    version: str

    def __post_init__(self) -> None:
        size = self.processor.get("size")
        for edge in ("height", "width"):
            ranges.IMAGE_SIDE.check(f"processor.size.{edge}", size.get(edge) if isinstance(size, dict) else None)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.processor["size"]["height"], self.processor["size"]["width"]

    @property
    def num_shards(self) -> int:
        """The number of shards."""
        return -(-self.num_source // self.shard_size)

    def items(self, shard: int) -> range:
        """The images of the source that a shard is made from."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_source))

    def file(self, shard: int) -> str:
        """The file name of a shard, as `datasets` names them."""
        return f"data-{shard:05d}-of-{self.num_shards:05d}.{self.file_format}"

    def differences(self, now: "EncodingSettings") -> list[str]:
        """Describe the settings in which `now` differs from these."""
        old, new = ({**vars(one), **one.processor} for one in (self, now))
        words = {
            "source_fingerprint": "content of the source", "num_source": "number of images", "file_format": "format"
        }  # fmt: skip
        return [
            f"{words.get(name, name)} ({truncate(str(old[name]), 60)}, not {truncate(str(new.get(name)), 60)})"
            for name in old
            if name != "processor" and old[name] != new.get(name)
        ]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What is recorded of a finished shard.

    Attributes:
        num_images: in the file.
        broken: images of its range that could not be read.
        checksum: the SHA-256 of the file.
    """

    num_images: int
    broken: list[BrokenImage]
    checksum: str

    def to_json(self) -> str:
        """The shard as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str, what: str) -> Self:
        """Read `to_json`.

        Raises: ValueError, which starts with `what`, for anything else.
        """
        return validate(parse_json(text, what), cls, what)


def shard_bytes(
    settings: EncodingSettings,
    ids: UInt16[np.ndarray, "n t"],
    labels: Int64[np.ndarray, " n"],
    indices: Int64[np.ndarray, " n"],
    hashes: UInt64[np.ndarray, " n"],
    broken: Sequence[BrokenImage],
) -> bytes:
    """The content of a shard's file; the same images give the same bytes."""
    import pyarrow
    from pyarrow import parquet

    length = ids.shape[1]
    columns = [
        pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(ids.reshape(-1)), length),
        pyarrow.array(labels),
        pyarrow.array(indices),
        pyarrow.array(hashes),
    ]
    listed = json.dumps([dataclasses.asdict(one) for one in broken])
    schema = _schema(settings).with_metadata({**(_schema(settings).metadata or {}), _OWN_KEY: listed.encode()})
    file, batch = pyarrow.BufferOutputStream(), pyarrow.record_batch(columns, schema=schema)
    if settings.file_format == "parquet":
        parquet.write_table(pyarrow.Table.from_batches([batch]), file)
    else:
        with pyarrow.ipc.new_stream(file, schema) as stream:
            stream.write_batch(batch)
    return file.getvalue().to_pybytes()


def open_shard(path: Path) -> "tuple[RecordBatch, list[BrokenImage]]":
    """Open a shard: its images, and the broken images of its range.

    Only what Arrow needs to open the file is checked; see `shard_damage`.

    Raises: ValueError, without the path, if the file is damaged; OSError if it does not exist or cannot be opened;
        MemoryError.
    """
    import pyarrow

    try:
        schema, batch = _read_parquet(path) if path.suffix == ".parquet" else _map_arrow(path)
        listed = parse_json((schema.metadata or {})[_OWN_KEY], "its list of broken images")
        return batch, validate(listed, list[BrokenImage], "its list of broken images")
    except MemoryError:  # Arrow's is an ArrowException, too
        raise
    except (pyarrow.ArrowException, OSError, StopIteration, KeyError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's: no rights, no memory, no such file
            raise
        raise ValueError(in_one_line(error)) from error


def shard_damage(folder: Path, settings: EncodingSettings, number: int, checksum: str | None) -> list[str]:
    """Read a shard, and describe in one clause what is wrong: other bytes than were written, or impossible content.

    Args:
        folder: of the encoding.
        settings: of the encoding.
        number: of the shard.
        checksum: the expected SHA-256; None matches nothing.
    Raises: OSError from the system, unless the file does not exist; MemoryError.
    """
    path = folder / settings.file(number)
    try:
        if file_sha256(path) != checksum:
            return [f"{path} is damaged (its SHA-256 is not the recorded one)"]
        _check_contents(*open_shard(path), settings, number)
    except FileNotFoundError:
        return [f"{path} is missing"]
    except ValueError as error:
        return [f"{path} is damaged ({error})"]
    return []


def features(settings: EncodingSettings) -> dict[str, Any]:
    """The columns as `datasets` describes them. Written by hand: importing the library takes each worker seconds."""
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


def _map_arrow(path: Path) -> "tuple[Schema, RecordBatch]":
    import pyarrow

    with pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))) as stream:
        return stream.schema, stream.read_next_batch()


def _read_parquet(path: Path) -> "tuple[Schema, RecordBatch]":
    import pyarrow
    from pyarrow import parquet

    table = parquet.read_table(pyarrow.memory_map(str(path))).combine_chunks()
    return table.schema, next(iter(table.to_batches()), pyarrow.RecordBatch.from_pylist([], table.schema))


def _check_contents(
    batch: "RecordBatch", broken: Sequence[BrokenImage], settings: EncodingSettings, number: int
) -> None:
    """Check that the content is possible: somebody else may have written the file and its checksum.

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
    if sorted([*batch.column("index").to_pylist(), *(one.index for one in broken)]) != list(settings.items(number)):
        raise ValueError("its images are not those of its range of the source")
    if len(ids) and ids.to_numpy().max() >= settings.num_colors:
        raise ValueError(f"it has ids beyond the {settings.num_colors} colours of the palette")
    num_labels = np.iinfo(np.int64).max if settings.classes is None else len(settings.classes)
    if len(labels) and not (labels.to_numpy().min() >= UNLABELED and labels.to_numpy().max() < num_labels):
        raise ValueError("it has labels that are no class")
