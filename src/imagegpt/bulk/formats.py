"""What a file of a run contains. The same images give the same bytes: no dates, no names of machines.

Axes: n images of the file, T pixels in raster order, V colours.
"""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from imagegpt.bulk.folder import FILE_FORMATS, RunSettings, read_settings
from imagegpt.files import png_bytes
from imagegpt.processing import ImageGPTImageProcessor

Encode = Callable[[range, Int64[np.ndarray, "n t"]], bytes]


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
    """The files of a block that are not there, and the images that belong in each of them."""
    files = ((folder / name, indices) for name, indices in settings.files(settings.block(block)))
    return [(path, indices) for path, indices in files if not _is_whole(path, len(indices))]


def count_images(folder: str | os.PathLike[str]) -> tuple[int, int]:
    """How many images of a run are in its folder, and how many there are to be; (0, 0) if there is no run.

    Raises: ValueError if its settings cannot be read.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    if settings is None:
        return 0, 0
    missing = (missing_files(folder, settings, block) for block in range(settings.num_blocks))
    return settings.num - sum(len(indices) for files in missing for _, indices in files), settings.num


def _is_whole(path: Path, num_images: int) -> bool:
    """Whether a file is there with this many images.

    A shard has fewer if the run was asked for fewer images when it was written. An empty file is what a power cut makes
    of one that was renamed in time but not on the disk yet.
    """
    try:
        if not path.stat().st_size:
            return False
        count = {".png": lambda _: 1, ".npz": _npz_rows, ".arrow": _arrow_rows}[path.suffix]
        return count(path) == num_images
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return False


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
    from datasets import Features, Image, List, Value
    from datasets.arrow_writer import ArrowWriter

    features = Features({"index": Value("int64"), "image": Image(), "ids": List(Value("uint16"))})

    def encode(indices: range, ids: Int64[np.ndarray, "n t"]) -> bytes:
        assert len(indices) == len(ids)
        shard = pyarrow.BufferOutputStream()
        with ArrowWriter(features=features, stream=shard) as writer:
            for index, row, image in zip(indices, ids, processor.decode(ids), strict=True):
                content = png_bytes(image, {}, settings.version)
                writer.write({"index": index, "image": {"bytes": content, "path": None}, "ids": row})
            writer.finalize(close_stream=False)
        return shard.getvalue().to_pybytes()

    return encode


def _colors(processor: ImageGPTImageProcessor) -> np.ndarray:
    """The palette as 8-bit colours, (V, 3)."""
    assert processor.palette is not None, "a pipeline has checked that there is one"
    return processor.palette.decode(np.arange(processor.palette.num_colors))


def _npz_rows(path: Path) -> int:
    with np.load(path) as shard:
        return len(shard["indices"])


def _arrow_rows(path: Path) -> int:
    import pyarrow

    with pyarrow.OSFile(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
        return sum(batch.num_rows for batch in stream)
