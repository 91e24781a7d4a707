"""Steps of `fit_colors` that its result does not show; test_palette.py tests fitting as a whole."""

import numpy as np
import pytest
import sklearn.cluster

from imagegpt.images.palette_fitting import fit_colors


def test_duplicate_centres_are_replaced_by_largest_errors(monkeypatch):
    class TwoCentresOfOneColour:
        def __init__(self, *args, **kwargs):
            self.cluster_centers_ = np.array([[0.1, 0.2, 0.0], [0.3, 0.0, 0.1]])

        def fit(self, pixels, sample_weight=None):
            return self

    monkeypatch.setattr(sklearn.cluster, "MiniBatchKMeans", TwoCentresOfOneColour)
    monkeypatch.setattr(sklearn.cluster, "KMeans", TwoCentresOfOneColour)
    # Errors against black, pixels times squared distance: 1 x 100, 2 x 2500, 3 x 9, and 1 x 3600 for the farthest.
    levels = [0] * 10 + [10] + [50] * 2 + [3] * 3 + [60]
    image = np.array([[level, 0, 0] for level in levels], np.uint8)
    colors = fit_colors(image, 2, seed=0, grey=False, max_pixels=100)
    assert colors.tolist() == [[0, 0, 0], [50, 0, 0]]


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("num_colors", [2, 512])
def test_images_of_one_color_need_other_images(grey, num_colors):
    """Regression: the error suggested fewer colours, and then refused one colour."""
    with pytest.raises(ValueError, match=r"^the images have only 1 of the at least 2 .* that a palette needs: add"):
        fit_colors([np.full((4, 4, 3), 7, np.uint8)], num_colors, seed=0, grey=grey, max_pixels=1000)
