"""Sources of many images: arrays, IDX and CIFAR files, tables of pictures in Arrow and parquet."""

import gzip
import hashlib
import io
import json
import pickle
import struct
from pathlib import Path
from random import Random
from typing import ClassVar

import datasets
import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

from imagegpt import ColorPalette, ImageGPTImageProcessor
from imagegpt.data.sources.registry import list_splits, open_images

from .arrow_formats import damage_parquet, damage_stream
from .cases import Kind
from .formats import damage_npy, damage_npz
from .mutations import damage_json


def damage_idx(content: bytes, rng: Random) -> tuple[bytes, str]:
    """Change the type, the number of axes or a length in the header of an IDX file."""
    damaged = bytearray(content)
    axes = content[3]
    which = rng.randrange(axes + 2)
    if which < 2:
        damaged[2 + which] = rng.choice((0, 1, 2, 3, 4, 8, 9, 14, 255))
    else:
        length = rng.choice((0, 1, 2**31, 2**32 - 1, 10**6))
        struct.pack_into(">I", damaged, 4 * (which - 1), length)
    return bytes(damaged), f"header {bytes(damaged[: 4 + 4 * axes]).hex()}"


def damage_gzip(content: bytes, rng: Random) -> tuple[bytes, str]:
    """Change a compressed IDX file and update its checksum."""
    damaged, change = damage_idx(gzip.decompress(content), rng)
    if rng.random() < 0.2:
        damaged, change = damaged + bytes(50_000_000), f"{change}, and 50 MB of zeros"
    return gzip.compress(damaged), change


def damage_batch(content: bytes, rng: Random) -> tuple[bytes, str]:
    """Change the content of a CIFAR pickle, which remains a pickle."""
    fields = pickle.loads(content, encoding="bytes")
    odd = [
        None,
        0,
        "x",
        [],
        {},
        [1, 2],
        [b"x"],
        np.zeros((2, 3)),
        np.zeros(3, object),
        np.zeros((30, 3071), np.uint8),
        {b"x": 1},
        10**400,
    ]
    key = rng.choice(list(fields))
    how = rng.choice(("value", "value", "removed", "renamed", "whole", "protocol"))
    if how == "value":
        fields[key] = rng.choice(odd)
    elif how == "removed":
        del fields[key]
    elif how == "renamed":
        fields[b"x"] = fields.pop(key)
    elif how == "whole":
        fields = rng.choice(odd)
    return pickle.dumps(fields, rng.choice((1, 2, 4, 5)) if how == "protocol" else 2), f"{key!r} {how}"


class Sources(Kind):
    """Image sources, except folders of image files."""

    name = "sources"
    num_cases = 1_000
    first_parser = "`open_images` recognises the source; its images may still be refused"
    imports = ("imagegpt.data.sources.registry", "datasets", "pyarrow.parquet")
    formats: ClassVar = {
        ".npz": damage_npz, ".npy": damage_npy, ".json": damage_json, ".arrow": damage_stream, ".parquet":
        damage_parquet, "ubyte": damage_idx,
        ".gz": damage_gzip, "_batch": damage_batch, "_batch_1": damage_batch,
    }  # fmt: skip

    def prepare(self) -> None:
        """Write twelve images in every format, most of them with classes."""
        rng = np.random.default_rng(0)
        images, labels = rng.integers(0, 256, (12, 8, 8, 3), np.uint8), np.arange(12) % 4
        for name in ("npz", "npy", "idx", "gz", "cifar", "binary", "saved", "parquet"):
            (self.folder / name).mkdir()
        np.savez(self.folder / "npz" / "train.npz", images=images, labels=labels)
        np.save(self.folder / "npy" / "train.npy", images)
        grey = struct.pack(">4B3I", 0, 0, 8, 3, 12, 8, 8) + images[..., 0].tobytes()
        classes = struct.pack(">4BI", 0, 0, 8, 1, 12) + labels.astype(np.uint8).tobytes()
        for name, content in {"images-idx3": grey, "labels-idx1": classes}.items():
            (self.folder / "idx" / f"train-{name}-ubyte").write_bytes(content)
            (self.folder / "gz" / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(content))
        large = rng.integers(0, 256, (12, 3072), np.uint8)
        for name in ("data_batch_1", "test_batch"):
            batch = {b"data": large, b"labels": labels.tolist(), b"batch_label": b"x"}
            (self.folder / "cifar" / name).write_bytes(pickle.dumps(batch, 2))
            records = np.concatenate([labels[:, None].astype(np.uint8), large], axis=1)
            (self.folder / "binary" / f"{name}.bin").write_bytes(records.tobytes())
        self._write_tables(images, labels)

    def _write_tables(self, images: np.ndarray, labels: np.ndarray) -> None:
        cells = [{"bytes": _png(image), "path": None} for image in images]
        kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        table = pyarrow.table({"image": pyarrow.array(cells, kind), "label": labels})
        names = {"names": ["a", "b", "c", "d"], "_type": "ClassLabel"}
        detail = {"info": {"features": {"image": {"_type": "Image"}, "label": names}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(detail)})
        parquet.write_table(table, self.folder / "parquet" / "train-00000-of-00001.parquet")
        file = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
        (self.folder / "saved" / "data-00000-of-00001.arrow").write_bytes(file.getvalue().to_pybytes())
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "x", "_split": "train"}
        (self.folder / "saved" / "state.json").write_text(json.dumps(state))
        (self.folder / "saved" / "dataset_info.json").write_text(json.dumps(detail["info"]))

    def passes_first_parser(self, case_folder: Path) -> bool:
        """See `first_parser`."""
        datasets.config.HF_DATASETS_CACHE = str(case_folder.parent / "cache")
        list_splits(case_folder)
        return True

    def open(self, case_folder: Path) -> str:
        """Read all images of all splits; broken ones are skipped, as in `encode`."""
        datasets.config.HF_DATASETS_CACHE = str(case_folder.parent / "cache")
        processor, digest = ImageGPTImageProcessor(ColorPalette.grey(16), size=8), hashlib.sha256()
        for split in list_splits(case_folder) or [None]:
            source = open_images(case_folder, split=split)
            labels = np.asarray(source.labels)
            assert labels.shape == (len(source),)
            digest.update(labels.tobytes() + repr(source.classes).encode())
            for index in range(min(len(source), 100)):
                try:
                    rgb = processor.to_rgb([source[index].image])[0]
                except (ValueError, FileNotFoundError) as error:
                    digest.update(str(error).encode(errors="replace"))
                else:
                    digest.update(rgb.tobytes())
        return digest.hexdigest()


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
