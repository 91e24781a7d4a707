"""What a file of a run contains. The same images give the same bytes: no dates, no names of machines.

Each kind of file holds checksums of its own contents, so that a damaged one is noticed, and drawn again.

Axes: n images of the file, T pixels in raster order, V colours.
"""

import hashlib
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64
from PIL import Image

from imagegpt.common.text import printable, shortened
from imagegpt.images.png import png_bytes
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.jobs.sample_folder import FILE_FORMATS, RunSettings, read_settings

if TYPE_CHECKING:
    from pyarrow import Table

Encode = Callable[[range, Int64[np.ndarray, "n t"]], bytes]

_CHECKSUM = b"imagegpt"  # the key of our own in the description that an Arrow file carries


def check_format(file_format: str) -> None:
    """See that files of a format can be written here.

    Raises: ValueError for an unknown one, or if the library it needs is missing.
    """
    if file_format not in FILE_FORMATS:
        raise ValueError(f"the format is {file_format!r}: choose one of {', '.join(FILE_FORMATS)}")
    if file_format == "arrow":
        try:
            import datasets  # noqa: F401 - whether it is there
        except ImportError as error:
            raise ValueError(
                "the format 'arrow' needs the library datasets: pip install 'imagegpt[data]', or choose png or npz"
            ) from error


def encoder(processor: ImageGPTImageProcessor, settings: RunSettings) -> Encode:
    """The function that turns images, by their indices and ids, into the bytes of a file.

    png: one image; text in it tells model, seed, rules and index.
    npz: `ids` (n, T), uint16, for which no palette is too large; `indices` (n,), int64; and of the whole run `seed`,
        uint64, `palette` (V, 3), uint8, and `size`, height and width.
    arrow: the columns index, image (a PNG, which `datasets` decodes) and ids, in Arrow's streaming format.
    """
    return {"png": _png_encoder, "npz": _npz_encoder, "arrow": _arrow_encoder}[settings.file_format](
        processor, settings
    )


def missing_files(folder: Path, settings: RunSettings, block: int) -> list[tuple[Path, range]]:
    """The files of a block that are not there or damaged, and the images that belong in each of them.

    Those that are there are read, and their checksums compared: about 0.1 ms a PNG, 10 ms a shard.
    """
    return [(path, indices) for path, indices in _files(folder, settings, block) if not _is_whole(path, len(indices))]


def damage_of(path: Path) -> str | None:
    """What is wrong with a file of a run, in a few words; None if nothing is, or it is not there."""
    try:
        _checked_rows(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        return str(error)
    return None


def count_images(folder: str | os.PathLike[str]) -> tuple[int, int]:
    """How many images of a run are in its folder, and how many there are to be; (0, 0) if there is no run.

    Damage is not looked for.

    Raises: ValueError if its settings cannot be read.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    if settings is None:
        return 0, 0
    files = (pair for block in range(settings.num_blocks) for pair in _files(folder, settings, block))
    return sum(len(indices) for path, indices in files if _seems_whole(path, len(indices))), settings.num


def _files(folder: Path, settings: RunSettings, block: int) -> list[tuple[Path, range]]:
    return [(folder / name, indices) for name, indices in settings.files(settings.block(block))]


def _is_whole(path: Path, num_images: int) -> bool:
    """Whether a file is there, undamaged, with this many images.

    A shard has fewer if the run was asked for fewer images when it was written.
    """
    try:
        return _checked_rows(path) == num_images
    except (FileNotFoundError, ValueError):
        return False


def _seems_whole(path: Path, num_images: int) -> bool:
    """Whether a file is there with this many images, by what costs little: a PNG is not opened."""
    try:
        if not path.stat().st_size:  # what a power cut makes of one that was renamed in time but not on the disk yet
            return False
        return path.suffix == ".png" or _KINDS[path.suffix][0](path) == num_images
    except Exception:  # noqa: BLE001 - the libraries' own, of many kinds
        return False


def _checked_rows(path: Path) -> int:
    """How many images are in a file, whose checksums are right.

    Raises: FileNotFoundError if it is not there; ValueError, in a few words, if it is damaged.
    """
    rows, check = _KINDS[path.suffix]
    try:
        check(path)
        return rows(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # the libraries' own, of many kinds
        reason = shortened(printable(str(error).replace(str(path), "the file")), 200)
        raise ValueError(reason or type(error).__name__) from error


def _png_encoder(processor: ImageGPTImageProcessor, settings: RunSettings) -> Encode:
    facts: dict[str, Any] = {"model": settings.model, "seed": settings.seed, "rules": settings.rules}

    def encode(indices: range, ids: Int64[np.ndarray, "n t"]) -> bytes:
        assert len(indices) == len(ids) == 1
        return png_bytes(processor.decode(ids)[0], {**facts, "index": indices.start}, settings.version)

    return encode


def _npz_encoder(processor: ImageGPTImageProcessor, settings: RunSettings) -> Encode:
    palette, height, width = _colors(processor), processor.size["height"], processor.size["width"]

    def encode(indices: range, ids: Int64[np.ndarray, "n t"]) -> bytes:
        assert len(indices) == len(ids)
        content = io.BytesIO()
        np.savez_compressed(
            content,
            ids=ids.astype(np.uint16),
            indices=np.asarray(indices, dtype=np.int64),
            seed=np.uint64(settings.seed),
            palette=palette,
            size=np.asarray([height, width]),
        )
        return content.getvalue()

    return encode


def _arrow_encoder(processor: ImageGPTImageProcessor, settings: RunSettings) -> Encode:
    import pyarrow
    from datasets import Features, List, Value
    from datasets import Image as ImageFeature

    schema = Features({"index": Value("int64"), "image": ImageFeature(), "ids": List(Value("uint16"))}).arrow_schema

    def encode(indices: range, ids: Int64[np.ndarray, "n t"]) -> bytes:
        assert len(indices) == len(ids)
        pictures = [png_bytes(image, {}, settings.version) for image in processor.decode(ids)]
        columns = {
            "index": list(indices),
            "image": [{"bytes": content, "path": None} for content in pictures],
            "ids": list(ids.astype(np.uint16)),
        }
        table = pyarrow.table(columns, schema)
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), _CHECKSUM: _checksum(table).encode()})
        shard = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(shard, table.schema) as stream:
            stream.write_table(table)
        return shard.getvalue().to_pybytes()

    return encode


def _colors(processor: ImageGPTImageProcessor) -> np.ndarray:
    """The palette as 8-bit colours, (V, 3)."""
    assert processor.palette is not None, "a pipeline has checked that there is one"
    return processor.palette.decode(np.arange(processor.palette.num_colors))


def _png_rows(_: Path) -> int:
    return 1


def _check_png(path: Path) -> None:
    """Each piece of a PNG has a CRC-32."""
    with Image.open(path, formats=["PNG"]) as picture:
        picture.verify()


def _npz_rows(path: Path) -> int:
    with np.load(path) as shard:
        return len(shard["indices"])


def _check_npz(path: Path) -> None:
    """Each array in a zip has a CRC-32."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"its {damaged} is not what was written")


def _arrow_rows(path: Path) -> int:
    import pyarrow

    with pyarrow.OSFile(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
        return sum(batch.num_rows for batch in stream)


def _check_arrow(path: Path) -> None:
    """Arrow has no checksums, so there is one of ours in the description of the columns."""
    import pyarrow

    with pyarrow.OSFile(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
        table = stream.read_all()
    table.validate(full=True)
    if (table.schema.metadata or {}).get(_CHECKSUM) != _checksum(table).encode():
        raise ValueError("its checksum is another")


def _checksum(table: "Table") -> str:
    """The SHA-256 of the cells of a shard."""
    digest = hashlib.sha256()
    for batch in table.to_batches():
        digest.update(batch.column("index").to_numpy().tobytes())
        for row in batch.column("ids"):
            digest.update(row.values.to_numpy().tobytes())
        for cell in batch.column("image"):
            digest.update(cell["bytes"].as_buffer())
    return digest.hexdigest()


# By the ends of their names: how many images a file says it has, and the check of its checksums.
_KINDS: dict[str, tuple[Callable[[Path], int], Callable[[Path], None]]] = {
    ".png": (_png_rows, _check_png),
    ".npz": (_npz_rows, _check_npz),
    ".arrow": (_arrow_rows, _check_arrow),
}
