"""Folders that `imagegpt encode` wrote, which have a manifest: what is damaged is refused, or made again as it was."""

import hashlib
import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow

from imagegpt import ColorPalette, ImageGPTImageProcessor
from imagegpt.data.encoded import EncodedImages
from imagegpt.jobs.encode import encode_images

from .arrow_formats import damage_stream
from .cases import Kind, WrongEndError
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
        """Images in several shards, one of them in two splits, with a broken image in between."""
        rng = np.random.default_rng(0)
        sources = self.folder.parent / f"{self.name}-{_SOURCE}"
        for name, splits in (("single", ("images",)), ("parts", ("train", "test"))):
            (sources / name).mkdir(parents=True, exist_ok=True)
            for split in splits:
                images, labels = rng.integers(0, 256, (30, 4, 4, 3), np.uint8), np.arange(30) % 4
                np.savez(sources / name / f"{split}.npz", images=images, labels=labels)
            encode_images(self._source(name), self.folder / name, small_processor(), shard_size=12)

    def passes_first_parser(self, place: Path) -> bool:
        """See `first_parser`."""
        for path in place.rglob("*.json"):
            json.loads(path.read_bytes())
        for path in place.rglob("*.arrow"):
            with pyarrow.ipc.open_stream(path.read_bytes()) as stream:
                list(stream)
        return True

    def open(self, place: Path) -> str:
        """Read everything; if that is refused, encode again, after which all must be as it was."""
        try:
            return _digest(place)
        except Exception as error:
            if not is_ours(error):
                raise
            name = "parts" if (place / "train").exists() or (place / "test").exists() else "single"
            encode_images(self._source(name), place, small_processor(), shard_size=12, max_broken=1)
        try:
            return _digest(place)
        except Exception as error:
            if not is_ours(error):
                raise
            raise WrongEndError(f"encoded again without a word, and still refused: {error}") from error

    def _source(self, name: str) -> Path:
        folder = self.folder.parent / f"{self.name}-{_SOURCE}" / name
        return folder / "images.npz" if name == "single" else folder


def small_processor(num_colors: int = 16) -> ImageGPTImageProcessor:
    """For images of 4 x 4 pixels."""
    return ImageGPTImageProcessor(ColorPalette.grey(num_colors), size=4)


def _digest(place: Path) -> str:
    digest = hashlib.sha256()
    for split in (None,) if (place / "encoding.json").exists() else ("train", "test"):
        images = EncodedImages.load(place, split)
        for array in (images.ids(range(len(images))), images.labels, images.indices, images.hashes):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(images.palette.fingerprint.encode())
        digest.update(images.processor.palette.fingerprint.encode())
    return digest.hexdigest()
