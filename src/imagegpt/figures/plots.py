"""Pictures of numbers, drawn by matplotlib."""

import io
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, Int64

from imagegpt.common.text import printable, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_POINTS = 2000
_MOST_CLASSES = 40  # in a confusion picture, which takes memory by their square
_LONGEST_NAME = 30  # of a class, in characters


def loss_curve(losses: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]]) -> bytes:
    """Draw how the loss went down.

    Args:
        losses: steps and losses; many are averaged, so that the picture stays light.
        validation: steps and losses of held-out images.
    Returns: a PNG.
    """
    figure, axes = _figure(7, 4)
    width = max(1, math.ceil(len(losses) / _MOST_POINTS))
    groups = [losses[start : start + width] for start in range(0, len(losses), width)]
    means = [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]
    axes.plot(*zip(*means, strict=True), color="#9db7d9", linewidth=1, label="training")
    if validation:
        marker = "o" if len(validation) < 40 else None
        axes.plot(*zip(*validation, strict=True), color="#1f4e8c", marker=marker, markersize=3, label="validation")
        best = min(validation, key=lambda point: point[1])
        axes.annotate(f"{best[1]:.4f}", best, textcoords="offset points", xytext=(0, -14), ha="center", fontsize=9)
    axes.set(xlabel="step", ylabel="loss")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return _png(figure)


def confusion_picture(counts: Int64[np.ndarray, "k k"], classes: Sequence[str]) -> bytes:
    """Draw how often each class was predicted for each other; of more than 40 classes the most confused.

    Args:
        counts: images of a class, a row each, by their predicted class.
        classes: their names.
    Returns: a PNG.
    """
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    shown = _most_confused(shares, _MOST_CLASSES)
    names = [shortened(printable(classes[index]), _LONGEST_NAME) for index in shown]
    counts, shares = counts[np.ix_(shown, shown)], shares[np.ix_(shown, shown)]
    figure, axes = _figure(2.5 + 0.5 * len(names), 2.5 + 0.5 * len(names))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    if len(shown) < len(classes):
        axes.set_title(f"the {len(shown)} of {len(classes):,} classes that are confused most")
    if len(names) <= 20:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=color)
    return _png(figure)


def rate_picture(losses: Sequence[tuple[float, float]], chosen: float) -> bytes:
    """Draw what learning rates led to.

    Args:
        losses: rates, ascending, and their validation losses.
        chosen: one of them.
    Returns: a PNG.
    """
    figure, axes = _figure(7, 4)
    axes.plot(*zip(*losses, strict=True), color="#1f4e8c", marker="o", markersize=4)
    axes.axvline(chosen, color="#9db7d9", linestyle="--", label=f"largest without harm: {chosen:g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="validation loss")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return _png(figure)


def _most_confused(shares: Float64[np.ndarray, "k k"], num: int) -> list[int]:
    """The classes, ascending, that are taken most for others and others for them; of equals the first."""
    confusion = shares.sum(axis=0) + shares.sum(axis=1) - 2 * shares.diagonal()
    return sorted(np.argsort(-confusion, kind="stable")[:num].tolist())


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _png(figure: "Figure") -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    content = io.BytesIO()
    with warnings.catch_warnings():
        # Characters that the font lacks are shown as boxes.
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()
