import pickle

import numpy as np
import pytest
import torch

from imagegpt.training import rng
from imagegpt.training.dataloader import Share, Steps, Subset, feed, in_stretches
from stripes import STRIPES, StripeImages


class Noisy(StripeImages):
    """Stripes with noise from the generator of each image."""

    def read(self, indices, generators):
        ids, labels = super().read(indices, generators)
        return ids + np.stack([one.integers(0, 100, 16) * 16 for one in generators]), labels


class Broken(Noisy):
    """Image 3 cannot be read."""

    def read(self, indices, generators):
        if 3 in indices:
            raise ValueError("cat.png cannot be decoded, it may be truncated: check the file")
        return super().read(indices, generators)


def steps(images=None, **share):
    return Steps(images or Noisy(), Share(**{"batch_size": 8, **share}), seed=0, mask_probability=0.3)


def joined(batches):
    """The parts of a step as one batch's fields."""
    return tuple(torch.cat([getattr(batch, name) for batch in batches]) for name in ("ids", "labels", "masked"))


def same(a, b):
    return all(x.equal(y) for x, y in zip(a, b, strict=True))


def test_a_step_is_the_images_of_its_number():
    ids, labels, masked = joined(steps()[5])
    indices = rng.batch_indices(5, num_images=24, batch_size=8, seed=0)
    assert (ids % 16).equal(STRIPES[indices])
    assert labels.equal(STRIPES[indices, 0] % 4)
    assert masked.equal(torch.from_numpy(rng.masks(0, 5, np.arange(8), 16, 0.3)))
    assert len({row.numpy().tobytes() for row in ids // 16}) == 8  # every image has its own generator


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 2), (2, None), (2, 1), (4, 2), (8, 1)])
def test_a_step_is_the_same_however_it_is_divided(world_size, micro_batch):
    parts = [
        part
        for rank in range(world_size)
        for part in steps(rank=rank, world_size=world_size, micro_batch=micro_batch)[5]
    ]
    assert len({len(part.ids) for part in parts}) == 1
    assert same(joined(parts), joined(steps()[5]))


def test_no_masks_unless_asked_for():
    assert Steps(StripeImages(), Share(batch_size=8), 0)[0][0].masked is None


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])  # a worker starts for seconds
def test_workers_prepare_the_same_batches(num_workers):
    fed = feed(steps(Broken()), 2, 9, num_workers=num_workers, pin_memory=False)
    whole = next(step for step in range(2, 9) if 3 in rng.batch_indices(step, num_images=24, batch_size=8, seed=0))
    assert whole > 2
    for step in range(2, whole):
        assert same(joined(next(fed)), joined(steps()[step]))
    # Torch's own way is a message with the traceback of the worker in it.
    with pytest.raises(ValueError, match=r"^cat\.png cannot be decoded, it may be truncated: check the file$"):
        next(fed)


def test_all_steps_are_fed_and_no_more():
    fed = [joined(batches) for batches in feed(steps(), 2, 7, num_workers=0, pin_memory=False)]
    assert all(same(a, joined(steps()[step])) for a, step in zip(fed, range(2, 7), strict=True))


@pytest.mark.parametrize(
    ("share", "message"),
    [
        ({"batch_size": 8, "world_size": 3}, "training.batch_size is 8, which 3 processes cannot share: choose a mult"),
        (
            {"batch_size": 8, "world_size": 2, "micro_batch": 3},
            "training.micro_batch is 3, and a process has 4 of training.batch_size = 8 images: choose a divisor of 4",
        ),
        ({"batch_size": 8, "world_size": 2, "micro_batch": 8}, "training.micro_batch is 8, and a process has 4 of"),
    ],
)
def test_what_cannot_be_divided_is_refused(share, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Share(**share)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [5, 8, 24, 100])
def test_stretches_cover_all_images_once(world_size, size):
    images = StripeImages()
    turns, seen = [], []
    for rank in range(world_size):
        mine = list(in_stretches(images, size, rank, world_size))
        turns.append(len(mine))
        for stretch in mine:
            assert stretch.counted in (0, len(stretch.ids))
            assert stretch.ids.equal(STRIPES[stretch.start : stretch.start + len(stretch.ids)])
            seen += range(stretch.start, stretch.start + stretch.counted)
    assert len(set(turns)) == 1  # all processes take part equally often
    assert sorted(seen) == list(range(24))


def test_some_of_them():
    some = Subset(StripeImages(), np.array([20, 3, 7, 8, 9]))
    assert len(some) == 5
    assert torch.cat([stretch.ids for stretch in in_stretches(some, 4)]).equal(STRIPES[[20, 3, 7, 8, 9]])


def test_steps_are_cheap_to_send_to_a_worker():
    assert len(pickle.dumps(steps(StripeImages()))) < 1000
