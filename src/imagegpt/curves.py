"""Pictures of numbers, drawn by matplotlib."""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_POINTS = 2000


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
    """Draw how often each class was taken for each other.

    Args:
        counts: images of a class, a row each, by what was said of them.
        classes: their names.
    Returns: a PNG.
    """
    figure, axes = _figure(1.5 + 0.5 * len(classes), 1.5 + 0.5 * len(classes))
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="said", ylabel="right")
    if len(classes) <= 20:
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


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _png(figure: "Figure") -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()
