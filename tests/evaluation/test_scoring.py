from helpers import digit_ids
from imagegpt.data.loading import open_data
from imagegpt.data.recipe import DataRecipe
from imagegpt.evaluation.baselines import NeighbourModel
from imagegpt.evaluation.scoring import baselines, read_all_ids


def test_baselines_are_fitted_to_images_without_augmentation():
    train, validation, test = (digit_ids(split).numpy() for split in ("train", "validation", "test"))
    expected = NeighbourModel(train, validation, num_colors=17, side=8)
    data = open_data(DataRecipe(train="digits", augmentation="flip"))
    nats = {score.name: score.nats for score in baselines(data, "test", test)}
    assert nats["neighbours"] == expected.pixel_nll(test).mean()
    assert nats["histogram"] == expected.histogram.pixel_nll(test).mean()


def test_all_ids_are_read_in_order():
    assert (read_all_ids(open_data(DataRecipe(train="digits")).validation) == digit_ids("validation").numpy()).all()
