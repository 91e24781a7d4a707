"""What is random in training, as pure functions of (seed, step, place in the batch): nothing need be remembered.

So a run that was killed goes on as if nothing had happened, and a batch is the same batch on any number of processes.

Axis letters: N images, B images of a step, T pixels.
"""

import functools

import numpy as np
from jaxtyping import Bool, Int64

_AUGMENTATION, _MASKS, _SUBSET = 1, 2, 3  # what a generator is for, so that no two uses share a stream


def batch_indices(step: int, *, num_images: int, batch_size: int, seed: int) -> Int64[np.ndarray, " b"]:
    """Which images step 0, 1, ... is made of: each pass over the data is a fresh shuffle, and steps run across passes.

    Returns: B indices below `num_images`, a function of the arguments alone.
    """
    wanted = np.arange(step * batch_size, (step + 1) * batch_size)
    passes = wanted // num_images
    shuffles = {p: _shuffled(num_images, seed, p) for p in np.unique(passes).tolist()}
    return np.array([shuffles[p][i] for p, i in zip(passes.tolist(), wanted % num_images, strict=True)], np.int64)


def dropout_seed(seed: int, step: int, rank: int = 0, part: int = 0) -> int:
    """The seed of torch's generator for one part of a step on one process, so that dropout depends on nothing before.

    Args:
        seed: of the run.
        step: from 0.
        rank: of the process.
        part: of the step, where gradients are accumulated.
    """
    return int(np.random.SeedSequence((seed, step, rank, part)).generate_state(1, np.uint64)[0] >> 1)


def augmentation_generator(seed: int, step: int, place: int) -> np.random.Generator:
    """What decides how the image at a place of a step's batch is cropped and flipped."""
    return np.random.default_rng((seed, step, place, _AUGMENTATION))


def masks(
    seed: int,
    step: int,
    places: Int64[np.ndarray, " b"],
    num_pixels: int,
    probability: float,
    up_to: float | None = None,
) -> Bool[np.ndarray, "b t"]:
    """Which pixels of the images at some places of a step's batch are hidden from BERT.

    Args:
        seed: of the run.
        step: from 0.
        places: in the batch.
        num_pixels: T.
        probability: of each pixel.
        up_to: where given, each image's probability is drawn evenly between the two.
    """
    rows = []
    for place in places:
        generator = np.random.default_rng((seed, step, int(place), _MASKS))
        draws = generator.random(num_pixels)
        mine = probability if up_to is None else generator.uniform(probability, up_to)
        rows.append(draws < mine)
    return np.stack(rows)


def random_subset(num_images: int, num_chosen: int, seed: int) -> Int64[np.ndarray, " n"]:
    """Which images stand for all of them: `num_chosen` at random, or all if there are no more; ascending."""
    order = np.random.default_rng((seed, num_images, _SUBSET)).permutation(num_images)
    return np.sort(order[:num_chosen])


@functools.lru_cache(maxsize=2)
def _shuffled(num_images: int, seed: int, number: int) -> Int64[np.ndarray, " n"]:
    order = np.random.default_rng((seed, number)).permutation(num_images)
    order.setflags(write=False)
    return order
