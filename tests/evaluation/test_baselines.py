import math

import numpy as np
import pytest

from helpers import digit_ids
from imagegpt.evaluation.baselines import STRENGTHS, NeighbourModel, PositionHistogram


@pytest.fixture(scope="module")
def digits():
    return tuple(digit_ids(split).numpy() for split in ("train", "validation", "test"))


@pytest.fixture(scope="module")
def histogram(digits):
    return PositionHistogram(*digits[:2], num_colors=17)


@pytest.fixture(scope="module")
def neighbours(digits):
    return NeighbourModel(*digits[:2], num_colors=17, side=8)


@pytest.mark.parametrize("name", ["histogram", "neighbours"])
def test_they_are_distributions(name, request, digits):
    """For neighbours as they come and for any others: what was never seen has its share too."""
    baseline = request.getfixturevalue(name)
    noise = np.random.default_rng(0).integers(0, 17, (20, 64))
    for ids in (digits[2][:50], noise):
        total = sum(baseline.probability(ids, np.full_like(ids, value)) for value in range(17))
        np.testing.assert_allclose(total, 1, rtol=0, atol=1e-12)
        assert (baseline.probability(ids, ids) > 0).all()
        np.testing.assert_allclose(baseline.pixel_nll(ids), -np.log(baseline.probability(ids, ids)))


def test_their_order_and_numbers_on_the_digits(digits, histogram, neighbours):
    """The numbers that README and model card quote."""
    test = digits[2]
    assert neighbours.pixel_nll(test).mean() == pytest.approx(1.5008, abs=5e-5)
    assert histogram.pixel_nll(test).mean() == pytest.approx(1.6772, abs=5e-5)
    assert histogram.pixel_nll(test).mean() < math.log(17)


def test_the_neighbour_model_sees_left_up_and_position_only(neighbours):
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 17, (1, 64))
    before = neighbours.probability(ids, ids)
    for t in (0, 7, 8, 27, 63):
        changed = ids.copy()
        changed[0, t] = (ids[0, t] + 1) % 17
        moved = np.flatnonzero(neighbours.probability(changed, ids)[0] != before[0]).tolist()
        right, below = t + 1 if t % 8 < 7 else None, t + 8 if t < 56 else None
        assert moved == [place for place in (right, below) if place is not None]


def test_the_histogram_by_hand():
    train = np.array([[0, 1], [0, 2], [1, 1]])
    model = PositionHistogram(train, train, num_colors=3)
    a = model.strength
    values = np.array([[0, 0], [1, 1], [2, 2]])
    expected = np.array([[2, 0], [1, 2], [0, 1]]) + a / 3
    np.testing.assert_allclose(model.probability(values, values), expected / (3 + a))


def test_what_always_follows_its_neighbours_is_learnt():
    """Images that copy the pixel above, or the one to the left, cost next to nothing but their first row or column."""
    rng = np.random.default_rng(2)
    rows = rng.integers(0, 5, (400, 6))
    for images in (np.repeat(rows[:, None], 6, axis=1), np.repeat(rows[:, :, None], 6, axis=2)):
        ids = images.reshape(400, 36)
        model = NeighbourModel(ids[:300], ids[300:350], num_colors=5, side=6)
        assert model.pixel_nll(ids[350:]).sum(axis=1).mean() == pytest.approx(6 * math.log(5), rel=0.05)


def test_smoothing_is_chosen_on_validation():
    """Validation images like the training images ask for little smoothing, others for much."""
    rng = np.random.default_rng(3)
    constant, noise = np.zeros((50, 4), int), rng.integers(0, 8, (50, 4))
    assert PositionHistogram(constant, constant, num_colors=8).strength == min(STRENGTHS)
    assert PositionHistogram(constant, noise, num_colors=8).strength == max(STRENGTHS)


def test_shares_sum_to_one(neighbours):
    assert neighbours.weights.sum() == pytest.approx(1)
    assert (neighbours.weights > 0.01).all()


IDS = np.zeros((2, 16), int)


@pytest.mark.parametrize(
    ("train", "validation", "side", "message"),
    [
        (IDS, IDS, 5, "side is 5: it must divide the 16 pixels of an image"),
        (IDS, IDS, 0, "side is 0: it must divide"),
        (IDS[:0], IDS, 4, r"train has the shape \(0, 16\): give \(images, pixels\)"),
        (IDS, IDS[0], 4, r"validation has the shape \(16,\): give \(images, pixels\)"),
        (IDS + 3, IDS, 4, "train holds ids 3 to 3: colours are 0 to 2"),
        (IDS, IDS - 1, 4, "validation holds ids -1 to -1: colours are 0 to 2"),
        (IDS, IDS[:, :4], 4, "train has images of 16 pixels, validation of 4: give images of one size"),
    ],
)
def test_bad_input(train, validation, side, message):
    with pytest.raises(ValueError, match=message):
        NeighbourModel(train, validation, num_colors=3, side=side)
