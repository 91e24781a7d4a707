"""The part of an encoding that several processes do at the same time: a shard from its stretch of the source.

A worker process opens the source itself and writes its shards itself; what goes between the processes is numbers. It
ends when its parent has gone, also if that was killed.

Axis letters: n images, T pixels in raster order.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imagegpt.data import encoding_folder as places
from imagegpt.data.broken_images import READ_ERRORS, BrokenImage
from imagegpt.data.encoding_settings import EncodingSettings
from imagegpt.data.encoding_shards import Shard, shard_bytes
from imagegpt.data.hashing import source_stamp
from imagegpt.data.identity import hash_of_picture
from imagegpt.data.palettes import checked_palette
from imagegpt.data.sources.base import UNLABELED, ImageSource, no_warnings
from imagegpt.files.atomic import atomic_write
from imagegpt.files.locks import BusyError
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.images.reading import read_image

_TELL_EVERY = 16  # images
_POLL_S = 0.2


class StoppedError(Exception):
    """The work was called off."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A source, or one of its splits, on its way into a folder.

    Attributes:
        source: of the pictures.
        processor: reads, resizes and encodes them.
        folder: where the shards go.
        settings: of the encoding.
        stamp: of the source's files when their content was last looked at, see `hashing.source_stamp`.
    """

    source: ImageSource
    processor: ImageGPTImageProcessor
    folder: Path
    settings: EncodingSettings
    stamp: str

    def check_unchanged(self) -> None:
        """See that nobody has touched the source's files meanwhile.

        Raises: ValueError if somebody has.
        """
        if source_stamp(self.source) != self.stamp:
            raise ValueError(f"the files of {self.source.name} have changed meanwhile: give the same command again")


@dataclass(frozen=True, kw_only=True)
class ShardMaker(Part):
    """Makes shards of a part in one process.

    Attributes:
        tell: called with the number of pictures that were read since the last call; raises `StoppedError` to stop.
    """

    tell: Callable[[int], None]

    def __post_init__(self) -> None:
        self.check_unchanged()

    def make(self, number: int, *, wait_for_others: bool) -> Shard | None:
        """Encode a stretch of the source and write it, unless another process has done so meanwhile.

        Args:
            number: of the shard.
            wait_for_others: if another command is making it; otherwise the answer is None then.
        Raises: OSError if it cannot be written; what `tell` raises.
        """
        name = self.settings.file(number)
        while True:
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(places.shard_locked(self.folder, name, _POLL_S if wait_for_others else 0))
                except BusyError:
                    if not wait_for_others:
                        return None
                    self.tell(0)  # it says whether to stop
                    continue
                there = self._shard_of_others(number)
                if there is not None:
                    self.tell(len(self.settings.stretch(number)))
                    return there
                places.remove_temporaries(self.folder, name)
                return self._encode(number)

    def _shard_of_others(self, number: int) -> Shard | None:
        """The shard, if another command has made it meanwhile."""
        manifest = places.read_manifest(self.folder)
        return None if manifest is None else places.examine_shards(self.folder, manifest, [number])[0].get(number)

    def _encode(self, number: int) -> Shard:
        stretch = self.settings.stretch(number)
        rgb = np.empty((len(stretch), *self.settings.size, 3), np.uint8)
        labels, indices = np.full(len(stretch), UNLABELED, np.int64), np.empty(len(stretch), np.int64)
        hashes, background = np.empty(len(stretch), np.uint64), self.processor.background
        row, broken = 0, []
        with no_warnings():
            for count, index in enumerate(stretch, start=1):
                name = f"image {index}"
                try:
                    example = self.source[index]
                    name = example.name
                    picture = read_image(example.image, background)
                    # A batch of the right size is taken as it is, without being read again.
                    rgb[row] = self.processor.to_rgb(picture[None] if isinstance(picture, np.ndarray) else [picture])[0]
                    hashes[row] = hash_of_picture(example.image, picture, background)
                except READ_ERRORS as error:
                    broken.append(BrokenImage.of(index, name, error))
                else:
                    labels[row] = UNLABELED if example.label is None else example.label
                    indices[row] = index
                    row += 1
                if count % _TELL_EVERY == 0 or count == len(stretch):
                    self.tell(1 + (count - 1) % _TELL_EVERY)
        ids = (
            checked_palette(self.processor).encode(rgb[:row], dtype=np.uint16).reshape(row, rgb.shape[1] * rgb.shape[2])
        )
        content = shard_bytes(self.settings, ids, labels[:row], indices[:row], hashes[:row], broken)
        file = self.settings.file(number)
        checksum = places.record_shard(self.folder, self.settings, file, content)
        atomic_write(self.folder / file, content, "the encoded images")
        return Shard(num_images=row, broken=broken, checksum=checksum)


# What a worker process works with. The pool gives no other way to hand something to a process rather than to a task,
# and a source may list millions of files.
_makers: list[ShardMaker | ValueError] = []


def start_worker(parts: Sequence[Part], counter: Any, stopped: Any) -> None:
    """Prepare a worker process.

    Args:
        parts: whose shards it may be asked for; their sources have just opened themselves here.
        counter: a shared number, of all pictures that were read.
        stopped: a shared number, not 0 when the work is called off.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the parent says what becomes of it
    threading.Thread(target=_follow_parent, daemon=True).start()

    def tell(num: int) -> None:
        with counter.get_lock():
            counter.value += num
        if stopped.value:
            raise StoppedError

    for part in parts:
        try:
            _makers.append(ShardMaker(**vars(part), tell=tell))
        except ValueError as error:  # to be raised where the parent hears of it
            _makers.append(error)


def make_shard(part: int, number: int, wait_for_others: bool) -> Shard | None:
    """`ShardMaker.make` in a worker process.

    Args:
        part: whose shard, by its place.
        number: of the shard.
        wait_for_others: as there.
    Raises: as it does; ValueError if the source is not the parent's.
    """
    maker = _makers[part]
    if isinstance(maker, ValueError):
        raise maker
    return maker.make(number, wait_for_others=wait_for_others)


def _follow_parent() -> None:
    """End this process when its parent does: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in workers only"
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
