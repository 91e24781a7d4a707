import io

import numpy as np
import pytest
from PIL import Image

from imagegpt.curves import confusion_picture, loss_curve


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
