"""From the bundled model to a classifier, as in the paper: the loss of the pixels beside that of the classes."""

import pytest
import torch
from transformers import AutoModelForImageClassification
from transformers.models.imagegpt.modeling_imagegpt import ImageGPTForImageClassification as Reference

from helpers import largest_difference
from imagegpt import ImageGPTForImageClassification
from imagegpt.data.sources.digits import load_digits
from imagegpt.training.distributed import World
from imagegpt.training.recipe_files import find_recipe
from imagegpt.training.recipe_io import read_recipe
from imagegpt.training.run import Run
from imagegpt.training.scores import classify, modal_class


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_bundled_bert_model_learns_to_read(tmp_path):
    run = Run(read_recipe(find_recipe("finetune-digits-bert")), tmp_path / "m", World(torch.device("cpu")))
    run.train()
    said, right = classify(tmp_path / "m", run.data.test)
    assert (said == right).mean() >= 0.95


def test_most_views_decide_and_of_equals_the_likelier():
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
    assert modal_class(views).tolist() == [0, 2, 0]


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.timeout(900)
def test_the_bundled_model_learns_to_read(tmp_path):
    run = Run(read_recipe(find_recipe("finetune-digits")), tmp_path / "m", World(torch.device("cpu")))
    run.train()
    said, right = classify(tmp_path / "m", run.data.test)
    assert len(said) == 360
    assert (said == right).mean() >= 0.97
    ours = ImageGPTForImageClassification.from_pretrained(tmp_path / "m").eval()
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path / "m").eval()
    assert type(theirs) is Reference
    ids = load_digits().test.ids
    with torch.no_grad():
        logits, reference = ours(ids).logits, theirs(ids).logits
    assert largest_difference(logits, reference) < 1e-4
    assert logits.argmax(dim=1).equal(reference.argmax(dim=1))
    assert (logits.argmax(dim=1).numpy() == said).all()
