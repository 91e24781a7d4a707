"""Classifying images with a fine-tuned model.

Axis letters: B images of a batch, M views of each, T pixels in raster order, K classes.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from imagegpt.data.dataloader import ordered_batches
from imagegpt.data.datasets import TokenDataset
from imagegpt.data.rng import masks
from imagegpt.evaluation.likelihood import Progress, no_progress
from imagegpt.evaluation.scoring import default_batch_size, load_for_evaluation
from imagegpt.model.losses import masked_embeddings
from imagegpt.model.modeling import ImageGPTForImageClassification

_NUM_VIEWS, _VIEW_SEED = 5, 0  # of a bidirectional classifier


@torch.inference_mode()
def classify(
    folder: Path,
    dataset: TokenDataset,
    *,
    mask_probability: float = 0.15,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Predict the class of every image.

    A bidirectional classifier was trained with masked pixels. It sees each image five times with different masks, and
    the class predicted most often wins; ties go to the likelier class. Source: the paper, section on fine-tuning.

    Args:
        folder: of the classifier.
        dataset: images with labels.
        mask_probability: that a pixel is masked for a bidirectional model.
        device: to compute on.
        progress: called with images classified, and images in all.
    Returns: the predicted and the true classes.
    """
    model = load_for_evaluation(folder, ImageGPTForImageClassification, device)
    predicted, true = [], []
    progress(0, len(dataset))
    for batch in ordered_batches(dataset, default_batch_size(model)):
        assert batch.labels is not None, "images to classify have labels"
        ids = batch.ids.to(device)
        if model.config.is_causal:
            classes = model(ids).logits.argmax(dim=1)
        else:
            classes = majority_class(torch.stack(list(_masked_logits(model, ids, batch.start, mask_probability))))
        predicted.append(classes.cpu().numpy())
        true.append(batch.labels.numpy())
        progress(sum(map(len, true)), len(dataset))
    return np.concatenate(predicted), np.concatenate(true)


def majority_class(logits: Float[Tensor, "m b k"]) -> Int64[Tensor, " b"]:
    """Return the class that most of M views predict; ties go to the class with the highest mean probability."""
    votes = functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).sum(dim=0)
    probabilities = logits.float().softmax(dim=-1).mean(dim=0)  # below 1, so that they only break ties
    return (votes + 0.5 * probabilities).argmax(dim=-1)


def _masked_logits(
    model: ImageGPTForImageClassification, ids: Int64[Tensor, "b t"], start: int, probability: float
) -> Iterator[Float[Tensor, "b k"]]:
    """Yield the logits of a bidirectional classifier for each view, with different masks each time."""
    positions = np.arange(start, start + len(ids))
    for view in range(_NUM_VIEWS):
        masked = torch.from_numpy(masks(_VIEW_SEED, view, positions, ids.shape[1], probability)).to(ids.device)
        yield model(inputs_embeds=masked_embeddings(model, ids, masked)).logits
