"""How well a model predicts images it has never seen, beside what can be had by counting.

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
class Parts:
    """Images to count over, to smooth with, and to score, as ids of one palette.

    Attributes:
        train: counted over.
        validation: what smoothing is chosen with.
        test: scored.
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
    parts: Parts,
    *,
    name: str,
    subset: Int64[np.ndarray, " s"] | None = None,
    batch_size: int = 64,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Score]:
    """The test likelihoods of a model, of both baselines, and of knowing nothing, best first.

    Args:
        model: causal.
        parts: the images.
        name: of the model.
        subset: rows of the test images to score by themselves, too: those that the model was validated with.
        batch_size: images the model scores at once.
        progress: called with images that the model has scored, and images in all.
    """
    own = score_model(model, parts.test, name=name, subset=subset, batch_size=batch_size, progress=progress)
    return sorted([*own, *baselines(parts)], key=lambda one: one.nats)


def score_model(
    model: ImageGPTForCausalImageModeling,
    ids: Int64[np.ndarray, "n t"],
    *,
    name: str,
    subset: Int64[np.ndarray, " s"] | None = None,
    batch_size: int = 64,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Score]:
    """The likelihood of images under a model, and that of the subset if there is one; arguments as in `compare`."""
    nats = pixel_nll(model, torch.from_numpy(ids), batch_size=batch_size, progress=progress).double().mean(dim=1)
    scores = [Score(name=name, nats=float(nats.mean()), note=f"{model.num_parameters():,} parameters")]
    if subset is not None:
        note = f"the same, on the {len(subset):,} of these images that chose the checkpoint"
        scores.append(Score(name="while training", nats=float(nats[torch.from_numpy(subset)].mean()), note=note))
    return scores


def uniform_score(num_colors: int) -> Score:
    """The likelihood of any images for one who knows nothing but the palette."""
    return Score(name="uniform", nats=math.log(num_colors), note=f"all {num_colors} colours alike")


def baselines(parts: Parts) -> list[Score]:
    """The test likelihoods of the baselines and of knowing nothing."""
    train, validation, num_colors = parts.train, parts.validation, parts.num_colors
    neighbours = NeighbourModel.fit(train, validation, num_colors=num_colors, side=parts.side)
    histogram = PositionHistogram.fit(train, validation, num_colors=num_colors)

    def nats(baseline: NeighbourModel | PositionHistogram) -> float:
        return float(baseline.pixel_nll(parts.test).mean())

    return [
        Score(name="neighbours", nats=nats(neighbours), note="left and upper pixel, position"),
        Score(name="histogram", nats=nats(histogram), note="position"),
        uniform_score(num_colors),
    ]
