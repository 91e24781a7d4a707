"""The randomness of training, as pure functions of (seed, step, position in the batch): there is no state to save.

So a run that was killed resumes as if nothing had happened, and a batch is the same on any number of processes.

Axis letters: N images, B images of a step, T pixels.
"""

import numpy as np
from jaxtyping import Bool, Int64

from imagegpt.data.shuffling import shuffled_indices

_AUGMENTATION, _MASKS = 1, 2  # the purpose of a generator, so that no two purposes share a stream


def batch_indices(step: int, *, num_images: int, batch_size: int, seed: int) -> Int64[np.ndarray, " b"]:
    """Return the images of step 0, 1, ...: every epoch shuffles them anew, and a step may span two epochs.

    Returns: B indices below `num_images`, a function of the arguments alone.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, positions = positions // num_images, positions % num_images
    indices = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs).tolist():
        chosen = epochs == epoch
        indices[chosen] = shuffled_indices(positions[chosen], num_images, (seed, epoch))
    return indices


def dropout_seed(seed: int, step: int, rank: int = 0, micro_batch: int = 0) -> int:
    """Return the seed of torch's generator for a micro-batch, so that dropout depends on nothing that came before.

    Args:
        seed: of the run.
        step: from 0.
        rank: of the process.
        micro_batch: its index in the step.
    """
    return int(np.random.SeedSequence((seed, step, rank, micro_batch)).generate_state(1, np.uint64)[0] >> 1)


def augmentation_rng(seed: int, step: int, position: int) -> np.random.Generator:
    """Return the generator that augments the image at a position of a step's batch."""
    return np.random.default_rng((seed, step, position, _AUGMENTATION))


def masks(
    seed: int,
    step: int,
    positions: Int64[np.ndarray, " b"],
    num_pixels: int,
    probability: float,
    max_probability: float | None = None,
) -> Bool[np.ndarray, "b t"]:
    """Choose the pixels to mask for BERT, for the images at some positions of a step's batch.

    Args:
        seed: of the run.
        step: from 0.
        positions: in the batch.
        num_pixels: T.
        probability: that a pixel is masked.
        max_probability: if given, the probability of each image is uniform between the two.
    """
    rows = []
    for position in positions.tolist():
        generator = np.random.default_rng((seed, step, position, _MASKS))
        uniform = generator.random(num_pixels)
        own = probability if max_probability is None else generator.uniform(probability, max_probability)
        rows.append(uniform < own)
    return np.stack(rows)
