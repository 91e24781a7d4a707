"""The files of a sampling job: their formats and checksums.

The same images give the same bytes: there are no dates and no host names. Every format has checksums of its content,
so that a damaged file is noticed and made again.

Axes: n images of the file, T pixels in raster order, V colours.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from jaxtyping import Int64
from PIL import Image

from imagegpt.common.text import printable, truncate
from imagegpt.data.palettes import checked_palette
from imagegpt.images.png import encode_png
from imagegpt.images.processor import ImageGPTImageProcessor

if TYPE_CHECKING:
    from pyarrow import Schema, Table

ImageFormat = Literal["png", "npz", "arrow", "parquet"]
FILE_FORMATS: tuple[ImageFormat, ...] = get_args(ImageFormat)

Encode = Callable[[Sequence[int], Int64[np.ndarray, "n t"]], bytes]

_CHECKSUM = b"imagegpt"  # the key of our checksum in the metadata of an Arrow schema


def check_format(file_format: str) -> None:
    """Check that files of a format can be written.

    Raises: ValueError for an unknown format, or if the library it needs is missing.
    """
    if file_format not in FILE_FORMATS:
        raise ValueError(f"the format is {file_format!r}: choose one of {', '.join(FILE_FORMATS)}")
    if file_format in ("arrow", "parquet"):
        try:
            import datasets  # noqa: F401 - whether it is installed
        except ImportError as error:
            raise ValueError(
                f"the format {file_format!r} needs the library datasets: pip install 'imagegpt[data]', or choose png "
                "or npz"
            ) from error


def png_encoder(processor: ImageGPTImageProcessor, facts: Callable[[int], Mapping[str, Any]], version: str) -> Encode:
    """Return the function that encodes one image as a PNG.

    Args:
        processor: of the model.
        facts: the metadata of an image, by its index.
        version: of this package.
    """

    def encode(indices: Sequence[int], ids: Int64[np.ndarray, "n t"]) -> bytes:
        (index,) = indices
        return encode_png(processor.decode(ids)[0], facts(index), version)

    return encode


def npz_encoder(processor: ImageGPTImageProcessor, seed: int) -> Encode:
    """Return the function that encodes images as `ids` (n, T), uint16, and `indices` (n,), int64.

    Beside them are, of all images, `seed`, uint64, `palette` (V, 3), uint8, and `size`, height and width.
    """
    colors = checked_palette(processor)
    palette, size = colors.decode(np.arange(colors.num_colors)), [processor.size["height"], processor.size["width"]]

    def encode(indices: Sequence[int], ids: Int64[np.ndarray, "n t"]) -> bytes:
        content = io.BytesIO()
        np.savez_compressed(
            content,
            ids=ids.astype(np.uint16),
            indices=np.asarray(indices, dtype=np.int64),
            seed=np.uint64(seed),
            palette=palette,
            size=np.asarray(size),
        )
        return content.getvalue()

    return encode


def table_encoder(processor: ImageGPTImageProcessor, file_format: ImageFormat, version: str) -> Encode:
    """Return the function that encodes images as the columns index, image (a PNG, which `datasets` decodes) and ids.

    Args:
        processor: of the model.
        file_format: "arrow", Arrow's streaming format, or "parquet".
        version: of this package.
    """
    import pyarrow
    from datasets import Features, List, Value
    from datasets import Image as ImageFeature
    from pyarrow import parquet

    schema = Features({"index": Value("int64"), "image": ImageFeature(), "ids": List(Value("uint16"))}).arrow_schema

    def encode(indices: Sequence[int], ids: Int64[np.ndarray, "n t"]) -> bytes:
        pictures = [encode_png(image, {}, version) for image in processor.decode(ids)] if len(ids) else []
        columns = {
            "index": list(indices),
            "image": [{"bytes": content, "path": None} for content in pictures],
            "ids": list(ids.astype(np.uint16)),
        }
        table = pyarrow.table(columns, schema)
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), _CHECKSUM: _checksum(table).encode()})
        file = pyarrow.BufferOutputStream()
        if file_format == "parquet":
            parquet.write_table(table, file)
        else:
            with pyarrow.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)
        return file.getvalue().to_pybytes()

    return encode


def damage_of(path: Path, num_images: int) -> str | None:
    """Read a file, and describe what is wrong with it in a few words; None if nothing is.

    About 0.1 ms per PNG, 10 ms per shard.

    Args:
        path: of the file.
        num_images: that it must have.
    Raises: FileNotFoundError if it does not exist.
    """
    try:
        found = _KINDS[path.suffix](path)
    except FileNotFoundError:
        raise
    except Exception as error:  # noqa: BLE001 - the libraries' own, of many kinds
        reason = truncate(printable(str(error).replace(str(path), "the file")), 200)
        return reason or type(error).__name__
    return None if found == num_images else f"it has {found} images instead of {num_images}"


def _verify_png(path: Path) -> int:
    """Every chunk of a PNG has a CRC-32."""
    with Image.open(path, formats=["PNG"]) as picture:
        picture.verify()
    return 1


def _verify_npz(path: Path) -> int:
    """Every array in a zip file has a CRC-32."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"its {damaged} is not what was written")
    with np.load(path) as shard:
        return len(shard["indices"])


def _verify_arrow(path: Path) -> int:
    import pyarrow

    with pyarrow.OSFile(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
        return _verify_table(stream.read_all(), stream.schema)


def _verify_parquet(path: Path) -> int:
    import pyarrow
    from pyarrow import parquet

    with pyarrow.OSFile(str(path)) as file:
        table = parquet.read_table(file)
    return _verify_table(table, table.schema)


def _verify_table(table: "Table", schema: "Schema") -> int:
    """Arrow has no checksums, so the metadata of the schema contain one of ours."""
    table.validate(full=True)
    if (schema.metadata or {}).get(_CHECKSUM) != _checksum(table).encode():
        raise ValueError("its checksum is wrong")
    return table.num_rows


def _checksum(table: "Table") -> str:
    """The SHA-256 of the cells of a shard."""
    digest = hashlib.sha256()
    for batch in table.combine_chunks().to_batches():
        digest.update(batch.column("index").to_numpy().tobytes())
        for row in batch.column("ids"):
            digest.update(row.values.to_numpy().tobytes())
        for cell in batch.column("image"):
            digest.update(cell["bytes"].as_buffer())
    return digest.hexdigest()


# By suffix: check the checksums, and return the number of images.
_KINDS: dict[str, Callable[[Path], int]] = {
    ".png": _verify_png,
    ".npz": _verify_npz,
    ".arrow": _verify_arrow,
    ".parquet": _verify_parquet,
}
