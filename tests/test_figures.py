"""Figures: what is where, checked by colours at places one can compute by hand."""

import numpy as np
import pytest
from PIL import Image

from imagegpt.figures import completion_grid, sample_grid


def flat(level, size=(8, 8)):
    return Image.new("L", size, level)


def count(canvas, color):
    return int((np.asarray(canvas) == color).all(axis=-1).sum())


def test_each_image_is_enlarged_by_a_whole_factor_and_shown_once():
    originals, completions = [flat(10), flat(20)], [[flat(31), flat(32)], [flat(41), flat(42)]]
    canvas = completion_grid(originals, 24, completions, ["a", "b"])
    assert canvas.mode == "RGB"
    pixels = 96 * 96
    for level in (31, 32, 41, 42):
        assert count(canvas, (level,) * 3) == pixels
    for level in (10, 20):  # the original, and 24 of 64 pixels of it
        assert count(canvas, (level,) * 3) == pixels + pixels * 24 // 64


def test_what_was_not_kept_is_hatched_after_exactly_the_kept_pixels():
    canvas = np.asarray(completion_grid([flat(0)], 29, [[flat(255)]]))
    left, top = 16 + 98 + 18 + 1, 16 + 25 + 1
    cell = canvas[top : top + 96, left : left + 96].reshape(8, 12, 8, 12, 3).swapaxes(1, 2)
    shown = (cell == 0).all(axis=(2, 3, 4)).ravel()
    assert shown.tolist() == [True] * 29 + [False] * 35
    hidden = cell.reshape(64, -1, 3)[29:].reshape(-1, 3).astype(int)
    assert (hidden[:, 2] - hidden[:, 0] > 15).all(), "blue, which no grey is"


@pytest.mark.parametrize("num_kept", [0, 1, 8, 64])
def test_any_number_of_pixels_can_be_kept(num_kept):
    canvas = completion_grid([flat(7)], num_kept, [[flat(9)]])
    assert count(canvas, (7, 7, 7)) == 96 * 96 + 144 * num_kept


def test_many_completions_continue_below():
    colors = [(200, 10, 20 * i) for i in range(11)]  # which no caption has
    canvas = completion_grid([flat(0)], 0, [[Image.new("RGB", (8, 8), color) for color in colors]])
    assert canvas.size == completion_grid([flat(0)], 0, [[flat(1)] * 16]).size
    assert canvas.width == completion_grid([flat(0)], 0, [[flat(1)] * 8]).width
    corners = [np.argwhere((np.asarray(canvas) == color).all(axis=-1))[0] for color in colors]
    rows, columns = zip(*corners, strict=True)
    assert len(set(rows[:8])) == len(set(rows[8:])) == 1
    assert rows[8] > rows[0]
    assert columns[8:] == columns[:3]


@pytest.mark.parametrize(
    ("size", "factor"), [((8, 8), 12), ((32, 32), 3), ((64, 64), 2), ((300, 300), 1), ((4, 32), 3)]
)
def test_cells_are_about_96_pixels(size, factor):
    assert count(sample_grid([flat(77, size)]), (77,) * 3) == size[0] * size[1] * factor**2


def test_samples_are_laid_out_row_by_row():
    canvas = np.asarray(sample_grid([flat(100 + i) for i in range(5)]))[..., 0]
    corners = [tuple(np.argwhere(canvas == 100 + i)[0]) for i in range(5)]
    step = 98 + 6
    assert corners == [(17 + step * (i // 3), 17 + step * (i % 3)) for i in range(5)]
    assert sample_grid([flat(1)] * 5, columns=5).height < sample_grid([flat(1)] * 5, columns=1).height


def test_captions_are_written_and_never_leave_the_paper():
    plain = np.asarray(completion_grid([flat(0)], 32, [[flat(0)]], ["x"]))
    long = np.asarray(completion_grid([flat(0)], 32, [[flat(0)]], ["a long name " * 30]))
    assert plain.shape == long.shape
    assert (long[:, -16:] == 255).all()
    assert (np.asarray(plain)[16:32] < 100).any(), "captions above the columns"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: completion_grid([], 0, []), "there are no images to draw: give at least one"),
        (lambda: completion_grid([flat(0)], 0, []), "0 lists of completions were given for 1 originals"),
        (lambda: completion_grid([flat(0)], 0, [[flat(0)]], ["a", "b"]), "1 lists of completions and 2 labels were"),
        (lambda: completion_grid([flat(0)] * 2, 0, [[flat(0)], []]), r"the originals have \[0, 1\] completions"),
        (lambda: completion_grid([flat(0)], 0, [[]]), r"the originals have \[0\] completions"),
        (lambda: completion_grid([flat(0)], 65, [[flat(0)]]), "65 pixels are said to be kept, an image has 64"),
        (lambda: completion_grid([flat(0)], 0, [[flat(0, (9, 8))]]), "the images differ in width and height"),
        (lambda: sample_grid([]), "there are no images to draw"),
        (lambda: sample_grid([flat(0)], columns=0), "columns is 0: it must be at least 1"),
        (
            lambda: sample_grid([flat(0), flat(0, (4, 8))]),
            r"the images differ in width and height \(\(4, 8\), \(8, 8\)\)",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
