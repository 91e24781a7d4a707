"""From the bundled model to a classifier, as in the paper: the loss of the pixels beside that of the classes."""

import pytest
import torch
from transformers import AutoModelForImageClassification
from transformers.models.imagegpt.modeling_imagegpt import ImageGPTForImageClassification as Reference

from helpers import digit_ids, largest_difference
from imagegpt import ImageGPTForImageClassification
from imagegpt.evaluation.classification import classify
from imagegpt.training.distributed import DistributedContext
from imagegpt.training.recipe_files import find_recipe
from imagegpt.training.recipe_io import read_recipe
from imagegpt.training.run import Run


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_bundled_bert_model_learns_to_read(tmp_path):
    run = Run(read_recipe(find_recipe("finetune-digits-bert")), tmp_path / "m", DistributedContext(torch.device("cpu")))
    run.train()
    said, right = classify(tmp_path / "m", run.data.test)
    assert (said == right).mean() >= 0.95


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.timeout(900)
def test_the_bundled_model_learns_to_read(tmp_path):
    run = Run(read_recipe(find_recipe("finetune-digits")), tmp_path / "m", DistributedContext(torch.device("cpu")))
    run.train()
    said, right = classify(tmp_path / "m", run.data.test)
    assert len(said) == 360
    assert (said == right).mean() >= 0.97
    ours = ImageGPTForImageClassification.from_pretrained(tmp_path / "m").eval()
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path / "m").eval()
    assert type(theirs) is Reference
    ids = digit_ids("test")
    with torch.no_grad():
        logits, reference = ours(ids).logits, theirs(ids).logits
    assert largest_difference(logits, reference) < 1e-4
    assert logits.argmax(dim=1).equal(reference.argmax(dim=1))
    assert (logits.argmax(dim=1).numpy() == said).all()
