"""From images to the batches of each step: the same ones however many processes, workers or restarts there are.

Axis letters: N images, B images of a part of a step, T pixels.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from imagegpt.training import rng
from imagegpt.training.objectives import Batch


@runtime_checkable
class Images(Protocol):
    """What is trained on. Workers get a copy, so that it must be cheap to pickle."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def read(
        self, indices: Int64[np.ndarray, " b"], generators: Sequence[np.random.Generator]
    ) -> tuple[Int64[np.ndarray, "b t"], Int64[np.ndarray, " b"] | None]:
        """Pixels, and classes if there are any, of some images.

        Each is augmented by its own generator; without generators none is, and nothing is random.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of a step a process works on, and in how many parts.

    Args:
        batch_size: images of a step, of all processes together.
        rank: of this process.
        world_size: processes.
        micro_batch: images worked on at a time; None is all of this process's share.
    Raises: ValueError if the batch cannot be divided so.
    """

    batch_size: int
    rank: int = 0
    world_size: int = 1
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size % self.world_size:
            raise ValueError(
                f"training.batch_size is {self.batch_size}, which {self.world_size} processes cannot share: "
                "choose a multiple of the number of processes"
            )
        mine = self.batch_size // self.world_size
        if self.micro_batch is not None and mine % self.micro_batch:
            raise ValueError(
                f"training.micro_batch is {self.micro_batch}, and a process has {mine} of training.batch_size = "
                f"{self.batch_size} images: choose a divisor of {mine}"
            )

    @property
    def parts(self) -> list[range]:
        """Places in the step's batch, for each pass of this process."""
        mine = self.batch_size // self.world_size
        size = mine if self.micro_batch is None else self.micro_batch
        first = self.rank * mine
        return [range(start, start + size) for start in range(first, first + mine, size)]


class Steps(Dataset[list[Batch]]):
    """The batches of each step, by its number.

    Args:
        images: what is trained on.
        share: of the step that is this process's.
        seed: of the run.
        mask_probability: of a pixel being hidden; None draws no masks.
        mask_up_to: see `order.masks`.
        labelled: whether each image must have a class.
    """

    def __init__(
        self,
        images: Images,
        share: Share,
        seed: int,
        mask_probability: float | None = None,
        mask_up_to: float | None = None,
        labelled: bool = False,
    ) -> None:
        self._images, self._share, self._seed, self._mask_probability = images, share, seed, mask_probability
        self._labelled, self._mask_up_to = labelled, mask_up_to

    def __getitem__(self, step: int) -> list[Batch]:
        """All passes of a step."""
        share, seed = self._share, self._seed
        indices = rng.batch_indices(step, num_images=len(self._images), batch_size=share.batch_size, seed=seed)
        return [self._part(step, indices[part.start : part.stop], part) for part in share.parts]

    def _part(self, step: int, indices: Int64[np.ndarray, " b"], places: range) -> Batch:
        generators = [rng.augmentation_generator(self._seed, step, place) for place in places]
        ids, labels = self._images.read(indices, generators)
        if self._labelled:
            check_labels(labels)
        masked = None
        if self._mask_probability is not None:
            hidden = rng.masks(
                self._seed, step, np.asarray(places), ids.shape[1], self._mask_probability, self._mask_up_to
            )
            masked = torch.from_numpy(hidden)
        return Batch(
            ids=torch.from_numpy(ids), labels=None if labels is None else torch.from_numpy(labels), masked=masked
        )


def check_labels(labels: Int64[np.ndarray, " b"] | None) -> None:
    """See that each of some images has a class.

    Raises: ValueError if not.
    """
    if labels is None or (labels < 0).any():
        raise ValueError(
            "an image has no label, and this objective learns classes: leave such images out, or label them"
        )


def feed(steps: Steps, first: int, last: int, *, num_workers: int, pin_memory: bool) -> Iterator[list[Batch]]:
    """The batches of steps `first` to `last - 1`, in order, prepared ahead by workers if there are any."""
    if not num_workers and not pin_memory:
        yield from (steps[step] for step in range(first, last))
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # the recipe wants so many
        loader = DataLoader(
            _Tried(steps),
            batch_size=None,
            sampler=range(first, last),
            num_workers=num_workers,
            pin_memory=pin_memory,
            # Workers that are forked inherit the locks of torch's threads, and may wait for ever.
            multiprocessing_context="spawn" if num_workers else None,
        )
        results = iter(loader)
    for result in results:
        if isinstance(result, Exception):
            raise result
        yield result


class _Tried(Dataset[list[Batch] | Exception]):
    """Steps, or what is wrong with them: the loader would bury a worker's error in its traceback."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def __getitem__(self, step: int) -> list[Batch] | Exception:
        try:
            return self._steps[step]
        except (ValueError, OSError) as error:
            return error


class Subset:
    """Some images of several.

    Args:
        images: all of them.
        rows: which.
    """

    def __init__(self, images: Images, rows: Int64[np.ndarray, " n"]) -> None:
        self._images, self._rows = images, rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(
        self, indices: Int64[np.ndarray, " b"], generators: Sequence[np.random.Generator]
    ) -> tuple[Int64[np.ndarray, "b t"], Int64[np.ndarray, " b"] | None]:
        """See `Images`."""
        return self._images.read(self._rows[indices], generators)


class Stretch(NamedTuple):
    """Some images in a row.

    Attributes:
        ids: their pixels.
        labels: their classes, if there are any.
        start: the number of the first of them.
        counted: how many of them count, from the first.
    """

    ids: Int64[Tensor, "b t"]
    labels: Int64[Tensor, " b"] | None
    start: int
    counted: int


def in_stretches(images: Images, size: int, rank: int = 0, world_size: int = 1) -> Iterator[Stretch]:
    """All images once, in order, not augmented.

    With several processes each gets every n-th stretch, and all get equally many, the last ones being repetitions that
    do not count: where weights are sharded all must work at once.

    Args:
        images: to read.
        size: at a time.
        rank: of this process.
        world_size: processes.
    """
    starts = range(0, len(images), size)
    for turn in range(0, len(starts), world_size):
        is_mine = turn + rank < len(starts)
        start = starts[turn + rank if is_mine else 0]
        ids, labels = images.read(np.arange(start, min(start + size, len(images))), [])
        there = None if labels is None else torch.from_numpy(labels)
        yield Stretch(torch.from_numpy(ids), there, start, len(ids) if is_mine else 0)
