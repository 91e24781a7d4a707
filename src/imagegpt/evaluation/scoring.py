"""Scoring a trained model on a split of its data, or on other data.

Axis letters: N images, T pixels in raster order.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int64

from imagegpt.checkpoints.loading import load_config, load_model, load_processor
from imagegpt.data.broken_images import MAX_BROKEN
from imagegpt.data.data_splits import DataSplits
from imagegpt.data.dataloader import ordered_batches
from imagegpt.data.datasets import Subset, TokenDataset
from imagegpt.data.identity import DataRecord
from imagegpt.data.loading import open_data_for_model
from imagegpt.data.rng import masks
from imagegpt.data.shuffling import random_subset
from imagegpt.evaluation.comparison import BaselineData, Score, compare, score_model, uniform_score
from imagegpt.model.attention import kernels
from imagegpt.model.losses import bert_loss
from imagegpt.model.modeling import ImageGPTForCausalImageModeling, ImageGPTPreTrainedModel

_MAX_BASELINE_IMAGES = 50_000  # for the baselines: more take memory, and change little
_READ_BATCH = 1024
_GPU_BATCH = 64
_CPU_PIXELS = 1 << 13  # of a batch: what fits into the cache is read faster

Progress = Callable[[int, int], None]
Model = TypeVar("Model", bound=ImageGPTPreTrainedModel)


def no_progress(done: int, total: int) -> None:
    """Report no progress."""


def open_data_for_folder(location: str, folder: Path, name: str, *, max_broken: float = MAX_BROKEN) -> DataSplits:
    """Open images to evaluate a model on, split as its training data were if they are the same images.

    Args:
        location: digits, encoded images, or any other source of images.
        folder: of the model.
        name: of the model, for messages.
        max_broken: the largest fraction of a split's images that may be broken; broken images are skipped.
    Raises: ValueError or OSError, in one sentence, if there are no such images, too many are broken, or they do not fit
        the model.
    """
    processor, record = load_processor(folder, load_config(folder)), DataRecord.read(folder)
    return open_data_for_model(location, name, processor, record, max_broken=max_broken)


def score_split(
    folder: Path,
    data: DataSplits,
    *,
    split: str | None,
    name: str = "this model",
    device: str = "cpu",
    progress: Progress = no_progress,
) -> list[Score]:
    """Score a causal model on a split, or on all images, beside the baselines.

    If training scored only some images of the split, there is also the score on those. There is no baseline but the
    uniform distribution if the others would be fitted to the images that they are scored on.

    Args:
        folder: of the model.
        data: the images.
        split: to score, see `DataSplits.choose_split`; None for all images, whatever split they are in.
        name: of the model, for people.
        device: to compute on.
        progress: called with images scored, and images in all.
    Returns: the scores, best first.
    """
    model = load_for_evaluation(folder, ImageGPTForCausalImageModeling, device)
    batch_size = default_batch_size(model)
    subset = data.validation_indices if split == "validation" else None
    if split is None or split == "train" or "train" not in data.splits:
        ids = np.concatenate([read_all_ids(one) for one in (data.sources if split is None else [data.splits[split]])])
        own = score_model(model, ids, name=name, subset=subset, batch_size=batch_size, progress=progress)
        return sorted([*own, uniform_score(data.palette.num_colors)], key=lambda one: one.nats)
    images = baseline_data(data, split)
    return compare(model, images, name=name, subset=subset, batch_size=batch_size, progress=progress)


def baseline_data(data: DataSplits, split: str) -> BaselineData:
    """Read the images that the baselines need.

    Args:
        data: with a train split. The baselines count over at most 50,000 of its images, a random subset that is always
            the same.
        split: to score.
    """
    train = Subset(data.train, random_subset(len(data.train), _MAX_BASELINE_IMAGES, data.record.hash_split["seed"]))
    scored = read_all_ids(data.splits[split])
    return BaselineData(
        train=read_all_ids(train),
        validation=read_all_ids(data.validation) if split != "validation" and "validation" in data.splits else scored,
        test=scored,
        num_colors=data.palette.num_colors,
        side=data.processor.size["width"],
    )


def read_all_ids(dataset: TokenDataset) -> Int64[np.ndarray, "n t"]:
    """Read all images of a data set, not augmented."""
    return np.concatenate([batch.ids.numpy() for batch in ordered_batches(dataset, _READ_BATCH)])


@torch.inference_mode()
def masked_nats(
    folder: Path,
    dataset: TokenDataset,
    *,
    probability: float = 0.15,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> float:
    """Nats per masked pixel of a bidirectional model, when each pixel is masked with that probability.

    Args:
        folder: of the model.
        dataset: the images.
        probability: that a pixel is masked.
        seed: of the masks.
        device: to compute on.
        progress: called with images scored, and images in all.
    """
    assert not load_config(folder).is_causal, "a causal model has no masked pixels"
    model = load_for_evaluation(folder, ImageGPTForCausalImageModeling, device)
    total, num_scored = 0.0, 0
    progress(0, len(dataset))
    for batch in ordered_batches(dataset, default_batch_size(model)):
        positions = np.arange(batch.start, batch.start + len(batch.ids))
        masked = torch.from_numpy(masks(seed, 0, positions, batch.ids.shape[1], probability))
        total += float(bert_loss(model, batch.ids.to(device), masked.to(device))) * len(batch.ids)
        num_scored += len(batch.ids)
        progress(num_scored, len(dataset))
    return total / num_scored


def load_for_evaluation(folder: Path, model_class: type[Model], device: str) -> Model:
    """Load a model with the fastest attention."""
    model = load_model(folder, model_class, device=device)
    model.set_attn_implementation(kernels.NAME)
    return model


def default_batch_size(model: ImageGPTPreTrainedModel) -> int:
    """Return how many images to give a model at a time."""
    return _GPU_BATCH if model.device.type != "cpu" else max(1, _CPU_PIXELS // model.config.n_positions)
