from itertools import chain

import numpy as np
import pytest

from imagegpt.data.rng import augmentation_rng, batch_indices, dropout_seed, masks


def batch(step, seed=0):
    return batch_indices(step, num_images=10, batch_size=4, seed=seed).tolist()


def test_every_epoch_has_all_images_in_another_order():
    indices = list(chain.from_iterable(batch(step) for step in range(5)))
    assert sorted(indices[:10]) == sorted(indices[10:]) == list(range(10))
    assert indices[:10] != indices[10:]
    assert batch(3) == batch(3)
    assert batch(0) != batch(0, seed=1)


def test_a_batch_may_be_larger_than_the_data():
    large = batch_indices(0, num_images=3, batch_size=7, seed=0)
    assert np.bincount(large, minlength=3).min() >= 2


def test_the_order_is_pinned():
    """A run that an older version started must resume with the images it would have seen."""
    assert batch_indices(2, num_images=1297, batch_size=4, seed=0).tolist() == [569, 544, 249, 903]


def test_a_dropout_seed_is_of_one_micro_batch_of_one_step_of_one_process():
    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    seeds = {dropout_seed(*place) for place in places}
    assert len(seeds) == 5
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert dropout_seed(3, 4, 5, 6) == dropout_seed(3, 4, 5, 6)


def test_augmentation_depends_on_the_place_in_the_batch_only():
    def draw(*place):
        return augmentation_rng(*place).random()

    assert draw(0, 1, 2) == draw(0, 1, 2)
    assert len({draw(0, 1, 2), draw(1, 1, 2), draw(0, 2, 2), draw(0, 1, 3)}) == 4


def test_masks_do_not_depend_on_how_a_batch_is_divided():
    whole = masks(0, 5, np.arange(8), 16, 0.3)
    halves = np.concatenate([masks(0, 5, np.arange(4), 16, 0.3), masks(0, 5, np.arange(4, 8), 16, 0.3)])
    assert (whole == halves).all()
    assert not (whole == masks(0, 6, np.arange(8), 16, 0.3)).all()
    assert len({row.tobytes() for row in whole}) == 8


def test_masks_hide_the_fraction_asked_for():
    hidden = masks(0, 0, np.arange(100), 1024, 0.15)
    assert hidden.mean() == pytest.approx(0.15, abs=0.005)  # 4.5 standard deviations
    assert (masks(0, 0, np.arange(100), 1024, 0.3) >= hidden).all()
