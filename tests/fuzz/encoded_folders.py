"""Folders written by `imagegpt encode`, with a manifest: damaged files are refused, or rebuilt identically."""

import hashlib
import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow

from imagegpt import ColorPalette, ImageGPTImageProcessor
from imagegpt.data.encoded import EncodedDataset
from imagegpt.jobs.encode import encode

from .arrow_formats import damage_stream
from .cases import Kind, WrongExitError
from .mutations import damage_json
from .worker import is_ours

_SOURCE = "source"  # beside the originals


class EncodedFolders(Kind):
    """Encoded folders and their shards."""

    name = "encoded"
    num_cases = 2_000
    first_parser = "every .json is JSON, and Arrow reads schema and batches of every shard"
    has_manifest = True
    imports = ("imagegpt", "imagegpt.data.encoded", "imagegpt.jobs.encode", "pyarrow")
    formats: ClassVar = {".json": damage_json, ".arrow": damage_stream}

    def prepare(self) -> None:
        """Write encoded folders with several shards, with two splits, and with a broken image."""
        rng = np.random.default_rng(0)
        sources = self.folder.parent / f"{self.name}-{_SOURCE}"
        for name, splits in (("single", ("images",)), ("parts", ("train", "test"))):
            (sources / name).mkdir(parents=True, exist_ok=True)
            for split in splits:
                images, labels = rng.integers(0, 256, (30, 4, 4, 3), np.uint8), np.arange(30) % 4
                np.savez(sources / name / f"{split}.npz", images=images, labels=labels)
            encode(self._source(name), self.folder / name, small_processor(), shard_size=12)

    def passes_first_parser(self, case_folder: Path) -> bool:
        """See `first_parser`."""
        for path in case_folder.rglob("*.json"):
            json.loads(path.read_bytes())
        for path in case_folder.rglob("*.arrow"):
            with pyarrow.ipc.open_stream(path.read_bytes()) as stream:
                list(stream)
        return True

    def open(self, case_folder: Path) -> str:
        """Read everything; if that is refused, encode again, which must restore all files."""
        try:
            return _digest(case_folder)
        except Exception as error:
            if not is_ours(error):
                raise
            name = "parts" if (case_folder / "train").exists() or (case_folder / "test").exists() else "single"
            encode(self._source(name), case_folder, small_processor(), shard_size=12, max_broken=1)
        try:
            return _digest(case_folder)
        except Exception as error:
            if not is_ours(error):
                raise
            raise WrongExitError(f"encoded again without a word, and still refused: {error}") from error

    def _source(self, name: str) -> Path:
        folder = self.folder.parent / f"{self.name}-{_SOURCE}" / name
        return folder / "images.npz" if name == "single" else folder


def small_processor(num_colors: int = 16) -> ImageGPTImageProcessor:
    """A processor for images of 4 x 4 pixels."""
    return ImageGPTImageProcessor(ColorPalette.grey(num_colors), size=4)


def _digest(case_folder: Path) -> str:
    digest = hashlib.sha256()
    for split in (None,) if (case_folder / "encoding.json").exists() else ("train", "test"):
        images = EncodedDataset(case_folder, split)
        for array in (images.read(np.arange(len(images))), *images._labels, images.indices, images.hashes):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(images.palette.fingerprint.encode())
        digest.update(images.processor.palette.fingerprint.encode())
    return digest.hexdigest()
