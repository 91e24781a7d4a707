"""Evaluating a model by its name, on images by their location: the work of `imagegpt evaluate`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagegpt.checkpoints.loading import find_folder, load_config, load_processor
from imagegpt.common.devices import choose_device
from imagegpt.data.broken_images import MAX_BROKEN, BrokenImage
from imagegpt.data.identity import DataRecord
from imagegpt.data.loading import open_data_for_model
from imagegpt.evaluation.likelihood import Progress, no_progress
from imagegpt.evaluation.scoring import Score, score_split


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How well a model predicts images.

    Attributes:
        model: as the user calls it.
        data: as the user calls the images.
        split: that was scored; None for all images.
        description: which images were scored, for people.
        num_images: how many were scored.
        scores: of the model and of baselines, best first.
        broken: images that could not be read, which were skipped.
        notes: sentences for the user on the data.
    """

    model: str
    data: str
    split: str | None
    description: str
    num_images: int
    scores: Sequence[Score]
    broken: Sequence[BrokenImage] = ()
    notes: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result for JSON; likelihoods in nats and in bits per pixel."""
        return {**dataclasses.asdict(self), "scores": [score.to_dict() for score in self.scores]}


def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    all_images: bool = False,
    max_broken: float = MAX_BROKEN,
    device: str | None = None,
    progress: Progress = no_progress,
) -> Evaluation:
    """Measure how many nats a causal model needs for a pixel of images, beside baselines.

    Images that the model was trained on are split as they were then; others without splits are split by its hash.

    Args:
        model: a name or a folder.
        data: digits, a folder of encoded images, or any other source of images.
        split: "train", "validation" or "test"; None for test if there is one, else validation.
        all_images: score all images, including those the model was trained on; without the counted baselines.
        max_broken: the largest fraction of a split's images that may be broken; broken images are skipped.
        device: to compute on; None for a GPU if there is one, else the CPU.
        progress: called with images scored, and images in all.
    Returns: the scores, and what they are of.
    Raises: ValueError or OSError, in one sentence, if there is no such model, there are no such images, or they do not
        fit together.
    """
    if all_images and split is not None:
        raise ValueError(f"all_images and split {split!r} were given: give one of them")
    name, location, chosen_device = str(model), str(data), str(choose_device(device))
    folder = find_folder(name)
    processor, record = load_processor(folder, load_config(folder)), DataRecord.read(folder)
    images = open_data_for_model(location, name, processor, record, max_broken=max_broken)
    chosen = None if all_images else images.choose_split(split)
    scores = score_split(folder, images, split=chosen, name=name, device=chosen_device, progress=progress)
    return Evaluation(
        model=name,
        data=location,
        split=chosen,
        description="all, including any that the model was trained on" if chosen is None else images.describe(chosen),
        num_images=sum(map(len, images.sources if chosen is None else [images.splits[chosen]])),
        scores=scores,
        broken=images.broken,
        notes=images.notes,
    )
