import io

import numpy as np
import pytest
from PIL import Image

from imagegpt.figures.plots import _most_confused, confusion_matrix_plot, loss_plot


def opened(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def blue(picture):
    """Where the picture has the dark blue of the validation curve."""
    return (np.abs(picture.astype(int) - [0x1F, 0x4E, 0x8C]).max(axis=2) < 20).sum()


@pytest.mark.parametrize("num", [1, 2, 5000])
def test_loss_plot(num):
    losses = [(step, 3 - step / num) for step in range(1, num + 1)]
    plain, both = opened(loss_plot(losses, [])), opened(loss_plot(losses, [(1, 2.5), (num, 2.0)]))
    assert plain.shape == both.shape == (400, 700, 3)
    assert blue(plain) == 0 < blue(both)


def test_long_loss_plots_average_the_losses():
    """A single spike in 10,000 steps still moves the picture."""
    flat = [(step, 1.0) for step in range(1, 10_001)]
    spiked = [(step, 500.0 if step == 7777 else loss) for step, loss in flat]
    assert not (opened(loss_plot(flat, [])) == opened(loss_plot(spiked, []))).all()


def test_loss_plot_accepts_nan_and_infinity():
    loss_plot([(1, 2.0), (2, float("inf")), (3, float("nan"))], [])


def test_confusion_matrix_plot():
    counts = np.array([[9, 1, 0], [0, 10, 0], [0, 0, 0]])  # of the last class there are no images
    right, wrong = (opened(confusion_matrix_plot(one, ["a", "b", "c"])) for one in (counts, counts[::-1].copy()))
    assert right.shape == wrong.shape
    assert not (right == wrong).all()
    assert opened(confusion_matrix_plot(np.eye(30, dtype=int), [str(k) for k in range(30)])).shape[0] > right.shape[0]


def test_confusion_matrix_plot_shows_at_most_forty_classes():
    """Of 300 classes it had 230 million pixels, and drawing it took 9.8 GB."""
    many, forty = (
        opened(confusion_matrix_plot(np.eye(num, dtype=int), [str(k) for k in range(num)])) for num in (300, 40)
    )
    assert many.shape == forty.shape
    assert many.size < 2e7


def test_the_most_confused_classes_are_shown():
    shares = np.eye(6)
    shares[1, 4], shares[1, 1] = 0.4, 0.6  # 1 is taken for 4
    shares[5, 2], shares[5, 5] = 0.1, 0.9
    assert _most_confused(shares, 2) == [1, 4]
    assert _most_confused(shares, 4) == [1, 2, 4, 5]
    assert _most_confused(shares, 5) == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("name", ["$y^$", "$x", r"\frac{$", "[/x]", "ol\udce9", "a\nb", "\x1b[2J", "茶", "a" * 300, ""])
def test_class_names_are_printed_verbatim(name):
    """Matplotlib would read `$` as mathematics, and end there if it is none."""
    confusion_matrix_plot(np.eye(3, dtype=int), [name, "b", name])
