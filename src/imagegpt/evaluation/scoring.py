"""How well a trained model predicts a split of its data, or other data, beside baselines that count.

Axis letters: N images, T pixels in raster order.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int64

from imagegpt.checkpoints.loading import load_config, load_model
from imagegpt.data.data_splits import DataSplits
from imagegpt.data.dataloader import ordered_batches
from imagegpt.data.datasets import Subset, TokenDataset
from imagegpt.data.rng import masks
from imagegpt.data.shuffling import random_subset
from imagegpt.evaluation.baselines import NeighbourModel
from imagegpt.evaluation.likelihood import Progress, no_progress, pixel_nll
from imagegpt.model.attention import kernels
from imagegpt.model.losses import bert_loss
from imagegpt.model.modeling import ImageGPTForCausalImageModeling, ImageGPTPreTrainedModel

_MAX_BASELINE_IMAGES = 50_000  # for the baselines: more take memory, and change little
_READ_BATCH = 1024
_MASK_SEED = 0
_GPU_BATCH = 64
_CPU_PIXELS = 1 << 13  # of a batch: what fits into the cache is read faster

Model = TypeVar("Model", bound=ImageGPTPreTrainedModel)


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well something predicts images.

    Attributes:
        name: for people.
        nats: per pixel.
        note: what it is, in a few words.
    """

    name: str
    nats: float
    note: str

    @property
    def bits(self) -> float:
        """Per pixel."""
        return self.nats / math.log(2)

    def to_dict(self) -> dict[str, str | float]:
        """Return the score for JSON, with units in the names."""
        return {"name": self.name, "nats_per_pixel": self.nats, "bits_per_pixel": self.bits, "note": self.note}


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
    sources = data.sources if split is None else [data.splits[split]]
    ids = np.concatenate([read_all_ids(source) for source in sources])
    subset = data.validation_indices if split == "validation" else None
    scores = score_model(model, ids, name=name, subset=subset, progress=progress)
    if split is None or split == "train" or "train" not in data.splits:
        scores.append(_uniform_score(data))
    else:
        scores += baselines(data, split, ids)
    return sorted(scores, key=lambda one: one.nats)


def score_model(
    model: ImageGPTForCausalImageModeling,
    ids: Int64[np.ndarray, "n t"],
    *,
    name: str,
    subset: Int64[np.ndarray, " s"] | None,
    progress: Progress,
) -> list[Score]:
    """Score a model on images, and separately on the subset that it was validated on, if that is given by indices."""
    batch_size = default_batch_size(model)
    nats = pixel_nll(model, torch.from_numpy(ids), batch_size=batch_size, progress=progress).double().mean(dim=1)
    scores = [Score(name=name, nats=float(nats.mean()), note=f"{model.num_parameters():,} parameters")]
    if subset is not None:
        note = f"the same, on the {len(subset):,} of these images that chose the checkpoint"
        scores.append(Score(name="while training", nats=float(nats[torch.from_numpy(subset)].mean()), note=note))
    return scores


def baselines(data: DataSplits, split: str, ids: Int64[np.ndarray, "n t"]) -> list[Score]:
    """Fit the baselines to the train split, and score them and the uniform distribution.

    Args:
        data: with a train split. The baselines count over at most 50,000 of its images, a random subset that is always
            the same.
        split: that is scored. The strengths of smoothing are chosen on the validation split, or on this one if there is
            no other.
        ids: all images of the split.
    """
    subset = random_subset(len(data.train), _MAX_BASELINE_IMAGES, data.record.hash_split["seed"])
    validation = read_all_ids(data.validation) if split != "validation" and "validation" in data.splits else ids
    num_colors, side = data.palette.num_colors, data.processor.size["width"]
    train = read_all_ids(Subset(data.train, subset))
    neighbours = NeighbourModel(train, validation, num_colors=num_colors, side=side)
    nats, histogram_nats = (float(one.pixel_nll(ids).mean()) for one in (neighbours, neighbours.histogram))
    return [
        Score(name="neighbours", nats=nats, note="left and upper pixel, position"),
        Score(name="histogram", nats=histogram_nats, note="position"),
        _uniform_score(data),
    ]


def _uniform_score(data: DataSplits) -> Score:
    """The score of the uniform distribution over the palette, on any images."""
    num_colors = data.palette.num_colors
    return Score(name="uniform", nats=math.log(num_colors), note=f"all {num_colors} colours alike")


def read_all_ids(dataset: TokenDataset) -> Int64[np.ndarray, "n t"]:
    """Read all images of a data set, not augmented."""
    return np.concatenate([batch.ids.numpy() for batch in ordered_batches(dataset, _READ_BATCH)])


@torch.inference_mode()
def masked_nats(
    folder: Path,
    dataset: TokenDataset,
    *,
    probability: float = 0.15,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> float:
    """Nats per masked pixel of a bidirectional model, when each pixel is masked with that probability.

    Args:
        folder: of the model.
        dataset: the images.
        probability: that a pixel is masked.
        device: to compute on.
        progress: called with images scored, and images in all.
    """
    assert not load_config(folder).is_causal, "a causal model has no masked pixels"
    model = load_for_evaluation(folder, ImageGPTForCausalImageModeling, device)
    total, num_scored = 0.0, 0
    progress(0, len(dataset))
    for batch in ordered_batches(dataset, default_batch_size(model)):
        positions = np.arange(batch.start, batch.start + len(batch.ids))
        masked = torch.from_numpy(masks(_MASK_SEED, 0, positions, batch.ids.shape[1], probability))
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
