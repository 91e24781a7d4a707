"""How well a model predicts images it has never seen, beside baselines that count.

Axis letters: N images, T pixels in raster order.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64

from imagegpt.evaluation.baselines import NeighbourModel, PositionHistogram
from imagegpt.evaluation.likelihood import pixel_nll
from imagegpt.model.modeling import ImageGPTForCausalImageModeling


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


@dataclass(frozen=True, kw_only=True)
class BaselineData:
    """The images that the baselines are fitted to and scored on, as ids of one palette.

    Attributes:
        train: for the counts.
        validation: for the choice of smoothing.
        test: to score.
        num_colors: of the palette.
        side: pixels in a row.
    """

    train: Int64[np.ndarray, "n t"]
    validation: Int64[np.ndarray, "m t"]
    test: Int64[np.ndarray, "k t"]
    num_colors: int
    side: int


def compare(
    model: ImageGPTForCausalImageModeling,
    data: BaselineData,
    *,
    name: str,
    subset: Int64[np.ndarray, " s"] | None = None,
    batch_size: int = 64,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Score]:
    """Score a model, both baselines and the uniform distribution on the test images.

    Args:
        model: causal.
        data: the images.
        name: of the model.
        subset: indices of test images to score separately, too: those that the model was validated on.
        batch_size: images of one forward pass.
        progress: called with images scored, and images in all.
    Returns: the scores, best first.
    """
    own = score_model(model, data.test, name=name, subset=subset, batch_size=batch_size, progress=progress)
    return sorted([*own, *baselines(data)], key=lambda one: one.nats)


def score_model(
    model: ImageGPTForCausalImageModeling,
    ids: Int64[np.ndarray, "n t"],
    *,
    name: str,
    subset: Int64[np.ndarray, " s"] | None = None,
    batch_size: int = 64,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Score]:
    """Score a model on images, and on the subset if there is one; see `compare` for the arguments."""
    nats = pixel_nll(model, torch.from_numpy(ids), batch_size=batch_size, progress=progress).double().mean(dim=1)
    scores = [Score(name=name, nats=float(nats.mean()), note=f"{model.num_parameters():,} parameters")]
    if subset is not None:
        note = f"the same, on the {len(subset):,} of these images that chose the checkpoint"
        scores.append(Score(name="while training", nats=float(nats[torch.from_numpy(subset)].mean()), note=note))
    return scores


def uniform_score(num_colors: int) -> Score:
    """The score of the uniform distribution over the palette, on any images."""
    return Score(name="uniform", nats=math.log(num_colors), note=f"all {num_colors} colours alike")


def baselines(data: BaselineData) -> list[Score]:
    """Fit the baselines, and score them and the uniform distribution on the test images."""
    train, validation, num_colors = data.train, data.validation, data.num_colors
    neighbours = NeighbourModel.fit(train, validation, num_colors=num_colors, side=data.side)
    histogram = PositionHistogram.fit(train, validation, num_colors=num_colors)

    def nats(baseline: NeighbourModel | PositionHistogram) -> float:
        return float(baseline.pixel_nll(data.test).mean())

    return [
        Score(name="neighbours", nats=nats(neighbours), note="left and upper pixel, position"),
        Score(name="histogram", nats=nats(histogram), note="position"),
        uniform_score(num_colors),
    ]
