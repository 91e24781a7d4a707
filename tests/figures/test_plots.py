import io

import numpy as np
import pytest
from PIL import Image

from imagegpt.figures.plots import _most_confused, confusion_picture, loss_curve


def opened(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def blue(picture):
    """Where the picture has the dark blue of the validation curve."""
    return (np.abs(picture.astype(int) - [0x1F, 0x4E, 0x8C]).max(axis=2) < 20).sum()


@pytest.mark.parametrize("num", [1, 2, 5000])
def test_a_loss_curve(num):
    losses = [(step, 3 - step / num) for step in range(1, num + 1)]
    plain, both = opened(loss_curve(losses, [])), opened(loss_curve(losses, [(1, 2.5), (num, 2.0)]))
    assert plain.shape == both.shape == (400, 700, 3)
    assert blue(plain) == 0 < blue(both)


def test_many_losses_are_averaged_not_dropped():
    """A single spike in 10,000 steps still moves the picture."""
    flat = [(step, 1.0) for step in range(1, 10_001)]
    spiked = [(step, 500.0 if step == 7777 else loss) for step, loss in flat]
    assert not (opened(loss_curve(flat, [])) == opened(loss_curve(spiked, []))).all()


def test_losses_that_are_no_numbers_do_no_harm():
    loss_curve([(1, 2.0), (2, float("inf")), (3, float("nan"))], [])


def test_a_confusion_picture():
    counts = np.array([[9, 1, 0], [0, 10, 0], [0, 0, 0]])  # of the last class there are no images
    right, wrong = (opened(confusion_picture(one, ["a", "b", "c"])) for one in (counts, counts[::-1].copy()))
    assert right.shape == wrong.shape
    assert not (right == wrong).all()
    assert opened(confusion_picture(np.eye(30, dtype=int), [str(k) for k in range(30)])).shape[0] > right.shape[0]


def test_a_confusion_picture_of_many_classes_is_no_larger_than_one_of_forty():
    """Of 300 classes it had 230 million pixels, and drawing it took 9.8 GB."""
    many, forty = (opened(confusion_picture(np.eye(num, dtype=int), [str(k) for k in range(num)])) for num in (300, 40))
    assert many.shape == forty.shape
    assert many.size < 2e7


def test_of_many_classes_the_most_confused_are_shown():
    shares = np.eye(6)
    shares[1, 4], shares[1, 1] = 0.4, 0.6  # 1 is taken for 4
    shares[5, 2], shares[5, 5] = 0.1, 0.9
    assert _most_confused(shares, 2) == [1, 4]
    assert _most_confused(shares, 4) == [1, 2, 4, 5]
    assert _most_confused(shares, 5) == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("name", ["$y^$", "$x", r"\frac{$", "[/x]", "ol\udce9", "a\nb", "\x1b[2J", "茶", "a" * 300, ""])
def test_classes_of_any_name(name):
    """Matplotlib would read `$` as mathematics, and end there if it is none."""
    confusion_picture(np.eye(3, dtype=int), [name, "b", name])
