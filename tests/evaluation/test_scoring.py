from helpers import digit_ids
from imagegpt.data.loading import open_data
from imagegpt.data.recipe import DataRecipe
from imagegpt.evaluation.scoring import baseline_data, read_all_ids


def test_baselines_are_fitted_to_images_without_augmentation():
    data = baseline_data(open_data(DataRecipe(train="digits", augmentation="flip")), "test")
    assert (data.train == digit_ids("train").numpy()).all()
    assert (data.test == digit_ids("test").numpy()).all()
    assert (data.num_colors, data.side) == (17, 8)


def test_all_ids_are_read_in_order():
    assert (read_all_ids(open_data(DataRecipe(train="digits")).validation) == digit_ids("validation").numpy()).all()
