"""From a data set to batches: those of each training step, and all images in order for validation.

A training batch is a function of (seed, step), the same for any number of processes, workers and restarts. Worker
processes get the data set that stores the images and, step by step, the indices to read: nothing whose size grows with
the data set is pickled.

Axis letters: N images, B images of a batch, T pixels.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from imagegpt.data import rng
from imagegpt.data.batch import Batch
from imagegpt.data.datasets import TokenDataset


@dataclass(frozen=True, kw_only=True)
class BatchLayout:
    """How the batch of a step is divided among processes and micro-batches.

    Args:
        batch_size: images of a step, of all processes together.
        rank: of this process.
        world_size: number of processes.
        micro_batch_size: images of one forward pass; None for all images of this process.
    Raises: ValueError if the batch cannot be divided so.
    """

    batch_size: int
    rank: int = 0
    world_size: int = 1
    micro_batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size % self.world_size:
            raise ValueError(
                f"training.batch_size is {self.batch_size}, which cannot be divided among {self.world_size} processes: "
                "choose a multiple of the number of processes"
            )
        own = self.batch_size // self.world_size
        if self.micro_batch_size is not None and own % self.micro_batch_size:
            raise ValueError(
                f"training.micro_batch_size is {self.micro_batch_size}, and each process has {own} of "
                f"training.batch_size = {self.batch_size} images: choose a divisor of {own}"
            )

    @property
    def micro_batches(self) -> list[range]:
        """The positions in the step's batch of each micro-batch of this process."""
        own = self.batch_size // self.world_size
        size = own if self.micro_batch_size is None else self.micro_batch_size
        first = self.rank * own
        return [range(start, start + size) for start in range(first, first + own, size)]


class _Request(NamedTuple):
    """What a worker needs to load a step: for each micro-batch the positions in the batch and the stored images."""

    step: int
    micro_batches: list[tuple[range, Int64[np.ndarray, " b"]]]


@dataclass(frozen=True)
class _StepReader(Dataset[list[Batch] | Exception]):
    """Loads the micro-batches of steps; a copy of it is in every worker process."""

    dataset: TokenDataset
    seed: int
    mask_probability: float | None
    max_mask_probability: float | None
    needs_labels: bool

    def __getitem__(self, request: _Request) -> list[Batch] | Exception:
        """Load a step. Errors are returned: a `DataLoader` would bury them in the traceback of its worker."""
        try:
            return [self._load(request.step, *micro_batch) for micro_batch in request.micro_batches]
        except (ValueError, OSError) as error:
            return error

    def _load(self, step: int, positions: range, indices: Int64[np.ndarray, " b"]) -> Batch:
        rngs = None
        if self.dataset.augmentation.is_random:
            rngs = [rng.augmentation_rng(self.seed, step, position) for position in positions]
        ids = self.dataset.read(indices, rngs)
        labels = self.dataset.read_labels(indices)
        if self.needs_labels:
            check_labels(labels)
        masked = None
        if self.mask_probability is not None:
            masked = rng.masks(
                self.seed,
                step,
                np.asarray(positions),
                ids.shape[1],
                self.mask_probability,
                self.max_mask_probability,
            )
        return Batch(
            ids=torch.from_numpy(ids),
            labels=None if labels is None else torch.from_numpy(labels),
            masked=None if masked is None else torch.from_numpy(masked),
        )


class TrainingBatches:
    """The micro-batches of each training step, by its number.

    Args:
        dataset: to train on.
        layout: which images of a step belong to this process.
        seed: of the run.
        mask_probability: that a pixel is masked; None for no masks.
        max_mask_probability: see `rng.masks`.
        needs_labels: whether every image must have a label.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        layout: BatchLayout,
        seed: int,
        mask_probability: float | None = None,
        max_mask_probability: float | None = None,
        needs_labels: bool = False,
    ) -> None:
        self._dataset, self._layout, self._seed = dataset, layout, seed
        stored, _ = dataset.locate(np.empty(0, np.int64))
        self._reader = _StepReader(stored, seed, mask_probability, max_mask_probability, needs_labels)

    def __getitem__(self, step: int) -> list[Batch]:
        return _raise_error(self._reader[self._request(step)])

    def prefetch(self, first: int, last: int, *, num_workers: int, pin_memory: bool) -> Iterator[list[Batch]]:
        """Yield the micro-batches of steps `first` to `last - 1`, loaded ahead of time by workers if there are any."""
        if not num_workers and not pin_memory:
            yield from (self[step] for step in range(first, last))
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # the user asked for so many
            loader = DataLoader(
                self._reader,
                batch_size=None,
                sampler=map(self._request, range(first, last)),
                num_workers=num_workers,
                pin_memory=pin_memory,
                # Forked workers inherit the locks of torch's threads and may wait for them forever.
                multiprocessing_context="spawn" if num_workers else None,
            )
            results = iter(loader)
        yield from map(_raise_error, results)

    def _request(self, step: int) -> _Request:
        size = self._layout.batch_size
        indices = rng.batch_indices(step, num_images=len(self._dataset), batch_size=size, seed=self._seed)
        micro_batches = [
            (positions, self._dataset.locate(indices[positions.start : positions.stop])[1])
            for positions in self._layout.micro_batches
        ]
        return _Request(step, micro_batches)


class OrderedBatch(NamedTuple):
    """Consecutive images of a data set.

    Attributes:
        ids: their pixels.
        labels: their classes; None without classes.
        start: the index of the first.
        num_counted: how many of them count, from the first; see `ordered_batches`.
    """

    ids: Int64[Tensor, "b t"]
    labels: Int64[Tensor, " b"] | None
    start: int
    num_counted: int


def ordered_batches(
    dataset: TokenDataset, batch_size: int, rank: int = 0, world_size: int = 1
) -> Iterator[OrderedBatch]:
    """Yield every image once, in order, not augmented.

    With several processes each gets every n-th batch. All get equally many, since sharded weights need all processes in
    every forward pass: the last batches of some processes are repetitions that do not count.

    Args:
        dataset: to read.
        batch_size: images of a batch.
        rank: of this process.
        world_size: number of processes.
    """
    starts = range(0, len(dataset), batch_size)
    for round_start in range(0, len(starts), world_size):
        counts = round_start + rank < len(starts)
        start = starts[round_start + rank if counts else 0]
        indices = np.arange(start, min(start + batch_size, len(dataset)))
        labels = dataset.read_labels(indices)
        yield OrderedBatch(
            ids=torch.from_numpy(dataset.read(indices)),
            labels=None if labels is None else torch.from_numpy(labels),
            start=start,
            num_counted=len(indices) if counts else 0,
        )


def check_labels(labels: Int64[np.ndarray, " b"] | None) -> None:
    """Check that every image has a label.

    Raises: ValueError if not.
    """
    if labels is None or (labels < 0).any():
        raise ValueError("an image has no label, which this objective needs: label all images, or remove the others")


def _raise_error(result: list[Batch] | Exception) -> list[Batch]:
    if isinstance(result, Exception):
        raise result
    return result
