import torch

from imagegpt.evaluation.classification import majority_class


def test_most_views_decide_and_ties_go_to_the_likelier_class():
    """Views of images in rows: three for class 0, two and two with class 2 surer, all undecided."""
    views = torch.tensor(
        [
            [[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 0.0]],
            [[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 0.0]],
            [[2.0, 1.0, 0.0], [0.0, 1.0, 9.0], [0.0, 0.0, 0.0]],
            [[0.0, 99.0, 0.0], [0.0, 1.0, 9.0], [0.0, 0.0, 0.0]],
            [[0.0, 99.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0]],
        ]
    )
    assert majority_class(views).tolist() == [0, 2, 0]
