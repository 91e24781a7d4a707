import io
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch

from helpers import STRIPES, StripeDataset
from imagegpt.data import rng
from imagegpt.data.augmentation import find_augmentation
from imagegpt.data.dataloader import BatchLayout, TrainingBatches, ordered_batches
from imagegpt.data.datasets import Subset


class NoisyDataset(StripeDataset):
    """Stripes with noise from the generator of each image."""

    augmentation = find_augmentation("flip")  # any that is random

    def _read(self, indices, rngs):
        return super()._read(indices, rngs) + np.stack([one.integers(0, 100, 16) * 16 for one in rngs])


class BrokenDataset(NoisyDataset):
    """Image 3 cannot be read."""

    def _read(self, indices, rngs):
        if 3 in indices:
            raise ValueError("cat.png cannot be decoded, it may be truncated: check the file")
        return super()._read(indices, rngs)


class HugeDataset(StripeDataset):
    """The stripes over and over."""

    def __init__(self, num_images):
        self.num_images = num_images

    def __len__(self):
        return self.num_images

    def _read(self, indices, rngs):
        return super()._read(indices % 24, rngs)

    def read_labels(self, indices):
        return self.labels[indices % 24]


def batches(dataset=None, **layout):
    layout = BatchLayout(**{"batch_size": 8, **layout})
    return TrainingBatches(dataset or NoisyDataset(), layout, seed=0, mask_probability=0.3)


def joined(micro_batches):
    """The micro-batches of a step as the fields of one batch."""
    return tuple(torch.cat([getattr(batch, name) for batch in micro_batches]) for name in ("ids", "labels", "masked"))


def same(a, b):
    return all(x.equal(y) for x, y in zip(a, b, strict=True))


def test_a_step_has_the_images_of_its_number():
    ids, labels, masked = joined(batches()[5])
    indices = rng.batch_indices(5, num_images=24, batch_size=8, seed=0)
    assert (ids % 16).equal(STRIPES[indices])
    assert labels.equal(STRIPES[indices, 0] % 4)
    assert masked.equal(torch.from_numpy(rng.masks(0, 5, np.arange(8), 16, 0.3)))
    assert len({row.numpy().tobytes() for row in ids // 16}) == 8  # every image has its own generator


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, 2), (2, None), (2, 1), (4, 2), (8, 1)])
def test_a_step_is_the_same_however_it_is_divided(world_size, micro_batch_size):
    micro_batches = [
        batch
        for rank in range(world_size)
        for batch in batches(rank=rank, world_size=world_size, micro_batch_size=micro_batch_size)[5]
    ]
    assert len({len(batch.ids) for batch in micro_batches}) == 1
    assert same(joined(micro_batches), joined(batches()[5]))


def test_a_step_of_a_subset_has_images_of_the_subset():
    indices = np.array([20, 3, 7, 8, 9])
    some = TrainingBatches(Subset(StripeDataset(), indices), BatchLayout(batch_size=5), 0)
    assert sorted(some[0][0].ids[:, 0].tolist()) == sorted(STRIPES[indices, 0].tolist())


def test_no_masks_unless_asked_for():
    assert TrainingBatches(StripeDataset(), BatchLayout(batch_size=8), 0)[0][0].masked is None


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])  # a worker starts for seconds
def test_workers_load_the_same_batches(num_workers):
    loaded = batches(BrokenDataset()).prefetch(2, 9, num_workers=num_workers, pin_memory=False)
    broken = next(step for step in range(2, 9) if 3 in rng.batch_indices(step, num_images=24, batch_size=8, seed=0))
    for step in range(2, broken):
        assert same(joined(next(loaded)), joined(batches()[step]))
    # Torch's own way is a message with the traceback of the worker in it.
    with pytest.raises(ValueError, match=r"^cat\.png cannot be decoded, it may be truncated: check the file$"):
        next(loaded)


def test_all_steps_are_loaded_and_no_more():
    loaded = [joined(step) for step in batches().prefetch(2, 7, num_workers=0, pin_memory=False)]
    assert all(same(a, joined(batches()[step])) for a, step in zip(loaded, range(2, 7), strict=True))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (
            {"batch_size": 8, "world_size": 3},
            "training.batch_size is 8, which cannot be divided among 3 processes: choose a multiple",
        ),
        (
            {"batch_size": 8, "world_size": 2, "micro_batch_size": 3},
            "training.micro_batch_size is 3, and each process has 4 of training.batch_size = 8 images: choose a "
            "divisor of 4",
        ),
        (
            {"batch_size": 8, "world_size": 2, "micro_batch_size": 8},
            "training.micro_batch_size is 8, and each process has 4",
        ),
    ],
)
def test_batches_that_cannot_be_divided_are_refused(layout, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        BatchLayout(**layout)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [5, 8, 24, 100])
def test_ordered_batches_cover_all_images_once(world_size, size):
    dataset = StripeDataset()
    rounds, seen = [], []
    for rank in range(world_size):
        own = list(ordered_batches(dataset, size, rank, world_size))
        rounds.append(len(own))
        for batch in own:
            assert batch.num_counted in (0, len(batch.ids))
            assert batch.ids.equal(STRIPES[batch.start : batch.start + len(batch.ids)])
            seen += range(batch.start, batch.start + batch.num_counted)
    assert len(set(rounds)) == 1  # all processes take part equally often
    assert sorted(seen) == list(range(24))


def test_ordered_batches_of_a_subset():
    some = Subset(StripeDataset(), np.array([20, 3, 7, 8, 9]))
    assert len(some) == 5
    assert torch.cat([batch.ids for batch in ordered_batches(some, 4)]).equal(STRIPES[[20, 3, 7, 8, 9]])


def pickled_bytes(value):
    """The size of what a spawned worker receives."""
    file = io.BytesIO()
    ForkingPickler(file).dump(value)
    return len(file.getvalue())


def test_what_a_worker_receives_does_not_grow_with_the_data():
    sizes = []
    for num_images in (1_000, 1_000_000):
        dataset = Subset(HugeDataset(num_images), np.arange(0, num_images, 2))
        training = batches(dataset)
        ours = pickled_bytes(training._reader), pickled_bytes(training._request(1_000))
        # A user's own loader gets the subset: its indices are in shared memory, and the pickle names that.
        sizes.append((*ours, pickled_bytes(dataset)))
    for small, large in zip(*sizes, strict=True):
        assert large <= small + 8  # numbers of more digits
        assert large < 2_000
