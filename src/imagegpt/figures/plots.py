"""Plots drawn with matplotlib, returned as PNG files."""

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, Int64

from imagegpt.common.text import printable, truncate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_POINTS = 2000
_MAX_CLASSES = 40  # in a confusion matrix, whose size is quadratic in them
_MAX_NAME_LENGTH = 30  # characters of a class name


@contextmanager
def warn_on_failure(what: str) -> Iterator[None]:
    """Context manager that turns errors into a warning, for pictures that a run can do without.

    Args:
        what: would be missing.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - plotting libraries raise many kinds
        reason = printable(" ".join(str(error).split())) or type(error).__name__
        warnings.warn(f"there is no {what} ({reason})", stacklevel=3)


def loss_plot(losses: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]]) -> bytes:
    """Plot the training and validation loss.

    Args:
        losses: (step, training loss) pairs; averaged in groups if there are many, to keep the file small.
        validation: (step, validation loss) pairs.
    Returns: a PNG.
    """
    figure, axes = _figure(7, 4)
    width = max(1, math.ceil(len(losses) / _MAX_POINTS))
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


def confusion_matrix_plot(counts: Int64[np.ndarray, "k k"], classes: Sequence[str]) -> bytes:
    """Plot a confusion matrix; of more than 40 classes, only those confused most.

    Args:
        counts: number of images by true class (rows) and predicted class (columns).
    Returns: a PNG.
    """
    fractions = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    shown = _most_confused(fractions, _MAX_CLASSES)
    names = [truncate(printable(classes[index]), _MAX_NAME_LENGTH) for index in shown]
    counts, fractions = counts[np.ix_(shown, shown)], fractions[np.ix_(shown, shown)]
    figure, axes = _figure(2.5 + 0.5 * len(names), 2.5 + 0.5 * len(names))
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    if len(shown) < len(classes):
        axes.set_title(f"the {len(shown)} of {len(classes):,} most confused classes")
    if len(names) <= 20:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if fractions[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=color)
    return _png(figure)


def learning_rate_plot(losses: Sequence[tuple[float, float]], chosen: float) -> bytes:
    """Plot validation loss against learning rate.

    Args:
        losses: (learning rate, validation loss) pairs in ascending order of the rates.
    Returns: a PNG.
    """
    figure, axes = _figure(7, 4)
    axes.plot(*zip(*losses, strict=True), color="#1f4e8c", marker="o", markersize=4)
    axes.axvline(chosen, color="#9db7d9", linestyle="--", label=f"chosen: {chosen:g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="validation loss")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return _png(figure)


def _most_confused(fractions: Float64[np.ndarray, "k k"], num: int) -> list[int]:
    """Indices of the classes with the most confusions in either direction, ascending; ties go to the lower index."""
    confusion = fractions.sum(axis=0) + fractions.sum(axis=1) - 2 * fractions.diagonal()
    return sorted(np.argsort(-confusion, kind="stable")[:num].tolist())


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _png(figure: "Figure") -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    content = io.BytesIO()
    with warnings.catch_warnings():
        # Characters missing from the font are drawn as boxes.
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()
