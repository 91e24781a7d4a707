"""Pictures of numbers, drawn by matplotlib."""

import io
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

_MOST_POINTS = 2000


def loss_curve(losses: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]]) -> bytes:
    """Draw how the loss went down.

    Args:
        losses: steps and losses; many are averaged, so that the picture stays light.
        validation: steps and losses of held-out images.
    Returns: a PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
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
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()


def confusion_picture(counts: Int64[np.ndarray, "k k"], classes: Sequence[str]) -> bytes:
    """Draw how often each class was taken for each other.

    Args:
        counts: images of a class, a row each, by what was said of them.
        classes: their names.
    Returns: a PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 0.5 * len(classes), 1.5 + 0.5 * len(classes)), layout="constrained")
    axes = figure.add_subplot()
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
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()
