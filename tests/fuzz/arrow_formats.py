"""Damaged Arrow streams and parquet files, written by pyarrow: wrong values, types, offsets, counts."""

import json
from random import Random

import numpy as np
import pyarrow
from pyarrow import parquet

from .mutations import ODD_VALUES, damage_json

_TYPES = (
    pyarrow.int8(),
    pyarrow.uint16(),
    pyarrow.int64(),
    pyarrow.float32(),
    pyarrow.string(),
    pyarrow.bool_(),
    pyarrow.null(),
)
_NUMBERS = (0, 1, 63, 64, 255, 65_535, -1)


def damage_stream(content: bytes, rng: Random) -> tuple[bytes, str]:
    """Change a column, the schema or the rows of an Arrow stream, offsets beyond their data included."""
    with pyarrow.ipc.open_stream(content) as stream:
        batches, schema = list(stream), stream.schema
    batch = pyarrow.Table.from_batches(batches, schema).combine_chunks().to_batches()[0]
    batch, change = _damaged(batch, rng, with_offsets=True)
    file = pyarrow.BufferOutputStream()
    if rng.random() < 0.05:
        change += ", as a file, not a stream"
        with pyarrow.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        return file.getvalue().to_pybytes(), change
    with pyarrow.ipc.new_stream(file, batch.schema) as writer:
        for _ in range(rng.choice((1, 1, 1, 1, 1, 0, 2))):
            writer.write_batch(batch)
    return file.getvalue().to_pybytes(), change


def damage_parquet(content: bytes, rng: Random) -> tuple[bytes, str]:
    """Change a column, the schema or the rows of a parquet file."""
    batch = parquet.read_table(pyarrow.BufferReader(content)).combine_chunks().to_batches()[0]
    batch, change = _damaged(batch, rng, with_offsets=False)
    file = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_batches([batch]), file)
    return file.getvalue().to_pybytes(), change


def _damaged(batch: pyarrow.RecordBatch, rng: Random, *, with_offsets: bool) -> tuple[pyarrow.RecordBatch, str]:
    columns, names = list(batch.columns), list(batch.schema.names)
    metadata = dict(batch.schema.metadata or {})
    number = rng.randrange(len(columns))
    column, name = columns[number], names[number]
    how = rng.choice(
        (
            "values",
            "values",
            "type",
            "nulls",
            "rename",
            "remove",
            "rows",
            "metadata",
            "swap",
            *["buffers"] * 5 * with_offsets,
        )
    )
    if how == "values":
        columns[number] = _other_values(column, rng)
    elif how == "type":
        kind = rng.choice(_TYPES)
        columns[number] = pyarrow.nulls(len(column), kind) if rng.random() < 0.5 else _as_type(column, kind)
    elif how == "nulls":
        columns[number] = pyarrow.array([None] * len(column), column.type)
    elif how == "rename":
        names[number] = rng.choice(("", "x", "label", "image", "ids", f"{name}s"))
    elif how == "remove":
        del columns[number], names[number]
    elif how == "rows":
        length = rng.choice((0, 1, len(column) - 1))
        columns = [one.slice(0, length) for one in columns]
    elif how == "metadata" and metadata:
        key = rng.choice(list(metadata))
        metadata[key] = _other_text(metadata[key], rng)
    elif how == "swap":
        other = rng.randrange(len(columns))
        columns[number], columns[other] = columns[other], columns[number]
    elif with_offsets:
        columns[number], detail = _other_buffers(column, rng)
        how = f"buffers ({detail})"
    fields = [pyarrow.field(one, values.type) for one, values in zip(names, columns, strict=True)]
    return pyarrow.RecordBatch.from_arrays(columns, schema=pyarrow.schema(fields, metadata)), f"column {name}: {how}"


def _other_values(column: pyarrow.Array, rng: Random) -> pyarrow.Array:
    """Replace a few values by invalid ones of the same type."""
    kind = column.type
    if pyarrow.types.is_fixed_size_list(kind):
        values = _other_values(column.flatten(), rng)
        length = rng.choice((kind.list_size, kind.list_size, 1, kind.list_size - 1))
        return pyarrow.FixedSizeListArray.from_arrays(values[: len(column) * length], length)
    if pyarrow.types.is_integer(kind):
        values = np.array(column.to_numpy(zero_copy_only=False))
        for _ in range(rng.choice((1, 3, 100))):
            if values.size:
                values[rng.randrange(values.size)] = np.array(rng.choice(_NUMBERS)).astype(values.dtype)
        return pyarrow.array(values, kind)
    values = column.to_pylist()
    if values:
        one = rng.randrange(len(values))
        odd = rng.choice((None, b"", b"x", b"\x89PNG\r\n\x1a\n"))
        values[one] = (
            {"bytes": odd, "path": rng.choice((None, "", "x.png", "/etc/passwd", "\0"))}
            if pyarrow.types.is_struct(kind)
            else odd
        )
    return pyarrow.array(values, kind)


def _as_type(column: pyarrow.Array, kind: pyarrow.DataType) -> pyarrow.Array:
    try:
        return column.cast(kind, safe=False)
    except pyarrow.ArrowException:
        return pyarrow.nulls(len(column), kind)


def _other_buffers(column: pyarrow.Array, rng: Random) -> tuple[pyarrow.Array, str]:
    """Change a number in one of the buffers of an array, for example an offset, without validation."""
    buffers = list(column.buffers())
    if pyarrow.types.is_struct(column.type):
        child, detail = _other_buffers(column.field(0), rng)
        children = [child, *(column.field(one) for one in range(1, column.type.num_fields))]
        return pyarrow.Array.from_buffers(column.type, len(column), buffers[:1], children=children), detail
    if pyarrow.types.is_fixed_size_list(column.type):
        child, detail = _other_buffers(column.flatten(), rng)
        return pyarrow.Array.from_buffers(column.type, len(column), buffers[:1], children=[child]), detail
    there = [number for number, buffer in enumerate(buffers) if buffer is not None and buffer.size >= 8]
    if not there:
        return column, "none to change"
    number = rng.choice(there)
    words = np.frombuffer(buffers[number], np.uint8).copy()
    words = words[: words.size // 4 * 4].view(np.int32)
    words[rng.randrange(words.size)] = rng.choice((-1, 0, 1, 10**6, 2**31 - 1, -(2**31)))
    buffers[number] = pyarrow.py_buffer(words.tobytes())
    return pyarrow.Array.from_buffers(column.type, len(column), buffers), f"buffer {number}"


def _other_text(text: bytes, rng: Random) -> bytes:
    try:
        json.loads(text)
    except ValueError:
        return str(rng.choice(ODD_VALUES)).encode(errors="replace")
    return damage_json(text, rng)[0]
