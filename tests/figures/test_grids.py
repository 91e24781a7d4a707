"""Image grids and animations, checked by colours at positions computed by hand."""

import numpy as np
import pytest
from PIL import Image

from imagegpt.figures.animations import reveal_frames
from imagegpt.figures.grids import completion_grid, sample_grid


def flat(level, size=(8, 8)):
    return Image.new("L", size, level)


def count(canvas, color):
    return int((np.asarray(canvas) == color).all(axis=-1).sum())


def test_each_image_is_enlarged_by_an_integer_factor_and_shown_once():
    originals, completions = [flat(10), flat(20)], [[flat(31), flat(32)], [flat(41), flat(42)]]
    canvas = completion_grid(originals, 24, completions, ["a", "b"])
    assert canvas.mode == "RGB"
    pixels = 96 * 96
    for level in (31, 32, 41, 42):
        assert count(canvas, (level,) * 3) == pixels
    for level in (10, 20):  # the original, and 24 of 64 pixels of it
        assert count(canvas, (level,) * 3) == pixels + pixels * 24 // 64


def test_hidden_pixels_are_hatched():
    canvas = np.asarray(completion_grid([flat(0)], 29, [[flat(255)]]))
    left, top = 16 + 98 + 18 + 1, 16 + 25 + 1
    cell = canvas[top : top + 96, left : left + 96].reshape(8, 12, 8, 12, 3).swapaxes(1, 2)
    shown = (cell == 0).all(axis=(2, 3, 4)).ravel()
    assert shown.tolist() == [True] * 29 + [False] * 35
    hidden = cell.reshape(64, -1, 3)[29:].reshape(-1, 3).astype(int)
    assert (hidden[:, 2] - hidden[:, 0] > 15).all(), "blue, which no grey is"


@pytest.mark.parametrize("num_visible", [0, 1, 8, 64])
def test_any_number_of_pixels_can_be_visible(num_visible):
    canvas = completion_grid([flat(7)], num_visible, [[flat(9)]])
    assert count(canvas, (7, 7, 7)) == 96 * 96 + 144 * num_visible


def test_more_than_eight_completions_continue_in_the_next_line():
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


def test_sample_grid_fills_rows_first():
    canvas = np.asarray(sample_grid([flat(100 + i) for i in range(5)]))[..., 0]
    corners = [tuple(np.argwhere(canvas == 100 + i)[0]) for i in range(5)]
    step = 98 + 6
    assert corners == [(17 + step * (i // 3), 17 + step * (i % 3)) for i in range(5)]


def test_captions_are_cut_off_at_the_margin():
    plain = np.asarray(completion_grid([flat(0)], 32, [[flat(0)]], ["x"]))
    long = np.asarray(completion_grid([flat(0)], 32, [[flat(0)]], ["a long name " * 30]))
    assert plain.shape == long.shape
    assert (long[:, -16:] == 255).all()
    assert (np.asarray(plain)[16:32] < 100).any(), "captions above the columns"


def noise(num, colors, size=(8, 8)):
    """Images in some of the given colours."""
    generator = np.random.default_rng(0)
    colors = np.asarray(colors, dtype=np.uint8)
    return [Image.fromarray(colors[generator.integers(0, len(colors), size[::-1])]) for _ in range(num)]


@pytest.mark.parametrize("num_shown", [0, 5, 64])
def test_pixels_not_sampled_yet_are_hatched(num_shown):
    samples = sample_grid([flat(7), flat(8)], num_shown=num_shown)
    assert [count(samples, (level,) * 3) for level in (7, 8)] == [144 * num_shown] * 2
    completions = completion_grid([flat(7)], 9, [[flat(8), flat(9)]], num_shown=num_shown)
    assert [count(completions, (level,) * 3) for level in (8, 9)] == [144 * num_shown] * 2
    assert count(completions, (7,) * 3) == 144 * (64 + 9)


def shown_in(frames, image_size):
    """How many pixels of the first image of a sheet are shown in each frame, given that it is black."""
    pixels = (np.asarray(sample_grid([flat(0, image_size)])) == 0).all(axis=-1).sum() // (image_size[0] * image_size[1])
    return [count(frame.convert("RGB"), (0, 0, 0)) // pixels for frame in frames]


@pytest.mark.parametrize(
    ("size", "num_visible", "shown"),
    [
        ((8, 8), 0, list(range(65))),
        ((8, 8), 61, [61, 62, 63, 64]),
        ((10, 10), 0, list(range(0, 101, 10))),
        ((10, 10), 25, [25, *range(30, 101, 10)]),
        ((10, 10), 30, list(range(30, 101, 10))),
        ((10, 10), 36, list(range(36, 101))),
        ((4, 100), 0, [*range(0, 400, 8), 400]),
        ((4, 99), 3, [3, *range(8, 396, 8), 396]),
        ((4, 99), 22, [22, *range(28, 396, 8), 396]),
        ((100, 1), 0, [0, 100]),
    ],
)
def test_frames_reveal_pixels_or_rows(size, num_visible, shown):
    images = [flat(0, size)]
    frames = list(reveal_frames(lambda num: sample_grid(images, num_shown=num), size, num_visible))
    assert shown_in(frames, size) == shown
    assert len(frames) <= 65
    assert [frame.info["duration"] for frame in frames] == [80] * (len(shown) - 1) + [2000]


@pytest.mark.parametrize("colors", [np.arange(17) * 15, np.random.default_rng(1).integers(0, 256, (200, 3))])
def test_frames_equal_the_grids_and_share_a_palette(colors):
    images = noise(4, colors)

    def draw_grid(num_shown):
        return sample_grid(images, num_shown=num_shown)

    frames = list(reveal_frames(draw_grid, (8, 8)))
    assert {frame.mode for frame in frames} == {"P"}
    assert len({bytes(frame.getpalette()) for frame in frames}) == 1
    for num_shown, frame in enumerate(frames):
        assert np.array_equal(np.asarray(frame.convert("RGB")), np.asarray(draw_grid(num_shown)))


def test_colours_beyond_256_are_replaced_by_near_ones():
    red, green, blue = np.meshgrid(*[np.arange(8) * 36] * 3)
    images = noise(4, np.stack([red, green, blue], axis=-1).reshape(-1, 3), (16, 16))
    *_, last = reveal_frames(lambda num: sample_grid(images, num_shown=num), (16, 16))
    error = np.abs(np.asarray(last.convert("RGB")).astype(int) - np.asarray(sample_grid(images)).astype(int))
    assert 0 < error.max() <= 54  # one and a half steps of the 512 colours, where 256 must do
    assert error[error.any(axis=-1)].mean() < 18


def test_originals_stay_visible_while_completions_appear():
    images = [flat(0)]
    frames = list(reveal_frames(lambda num: completion_grid(images, 62, [[flat(255)]], num_shown=num), (8, 8), 62))
    left, right = [np.asarray(frame.convert("RGB"))[:, :246] for frame in frames], [np.asarray(f) for f in frames]
    assert len(frames) == 3
    assert all(np.array_equal(frame, left[0]) for frame in left)
    assert len({frame.tobytes() for frame in right}) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: completion_grid([], 0, []), "there are no images to draw: give at least one"),
        (lambda: completion_grid([flat(0)], 0, [[flat(0, (9, 8))]]), "the images differ in width and height"),
        (lambda: reveal_frames(sample_grid, (8, 8), 64), "64 pixels are visible from the start, an image has 64"),
        (lambda: reveal_frames(sample_grid, (8, 8), -1), "-1 pixels are visible from the start, an image has 64"),
        (lambda: sample_grid([]), "there are no images to draw"),
        (
            lambda: sample_grid([flat(0), flat(0, (4, 8))]),
            r"the images differ in width and height \(\(4, 8\), \(8, 8\)\)",
        ),
    ],
)
def test_invalid_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
