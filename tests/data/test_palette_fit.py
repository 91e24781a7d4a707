import numpy as np
import pytest

from imagegpt import ColorPalette, ImageGPTImageProcessor
from imagegpt.data import palettes
from imagegpt.data.palettes import fit_palette
from imagegpt.data.sources.registry import open_images
from imagegpt.figures.grids import before_after_grid, palette_grid


@pytest.fixture
def source(tmp_path, rgb):
    np.save(tmp_path / "a.npy", rgb)
    return open_images(tmp_path / "a.npy")


SIZE_8 = ImageGPTImageProcessor(size=8)


@pytest.mark.parametrize("grey", [False, True])
def test_the_palette_is_that_of_all_pixels(source, rgb, grey):
    told = []
    fitted = fit_palette(source, 20, SIZE_8, seed=3, grey=grey, on_progress=lambda *numbers: told.append(numbers))
    assert fitted.palette == ColorPalette.fit(rgb, 20, seed=3, grey=grey)
    assert fitted.palette.is_grey == grey
    assert (fitted.num_images, fitted.broken, len(fitted.examples)) == (30, [], 30)
    assert str(fitted.report) == str(fitted.palette.report(rgb))
    assert told == [(count, 30) for count in range(31)]


def test_images_are_resized_first(source):
    fitted = fit_palette(source, 10, ImageGPTImageProcessor(size=4))
    assert {image.shape for image in fitted.examples} == {(4, 4, 3)}


def test_a_sample_of_the_images_is_random_and_repeatable(source, rgb):
    def chosen(seed):
        examples = fit_palette(source, 10, SIZE_8, seed=seed, max_images=6).examples
        found = [int(np.flatnonzero((rgb == image).all(axis=(1, 2, 3)))[0]) for image in examples]
        assert len(set(found)) == 6
        assert found == sorted(found)
        return found

    assert chosen(1) == chosen(1) != chosen(2)
    assert fit_palette(source, 10, SIZE_8, max_images=30).num_images == 30


def test_the_report_is_over_images_from_all_over(source, rgb, monkeypatch):
    monkeypatch.setattr(palettes, "_MAX_EXAMPLES", 10)
    fitted = fit_palette(source, 10, SIZE_8)
    assert np.array_equal(np.stack(fitted.examples), rgb[::3])
    assert fitted.report.num_pixels == 10 * 64


def test_broken_images_are_left_out(photos):
    fitted = fit_palette(open_images(photos), 16, SIZE_8)
    assert fitted.num_images == 198
    assert [(one.name, one.trouble) for one in fitted.broken] == [
        ("dog/150.jpg", "unreadable"),
        ("dog/151.png", "huge"),
    ]


def test_bad_input_is_one_sentence(tmp_path, source):
    with pytest.raises(ValueError, match=r"^max_images is 0: it must be an integer from 1 to 1,000,000,000"):
        fit_palette(source, 10, SIZE_8, max_images=0)
    with pytest.raises(ValueError, match=r"^the images have \d+ distinct colours, fewer than num_colors = 3000"):
        fit_palette(source, 3000, SIZE_8)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"^none of the 1 images of .*bad can be read: 1.png is unreadable$"):
        fit_palette(open_images(tmp_path / "bad"), 4, SIZE_8)


def test_the_picture_of_a_palette_shows_every_colour_in_order(palette):
    picture = np.asarray(palette_grid(palette.rgb))
    assert picture.shape == (16 + 2 * 17 - 1 + 16, 16 + 32 * 17 - 1 + 16, 3)
    for index, color in enumerate(palette.rgb):
        line, column = divmod(index, 32)
        square = picture[16 + 17 * line :][:16, 16 + 17 * column :][:, :16]
        assert (square == color).all()
    assert palette_grid(palette.rgb[:3]).width == 16 + 3 * 17 - 1 + 16


def test_before_is_above_after():
    from PIL import Image

    def plain(*levels):
        return [Image.new("RGB", (4, 4), (level, 0, 0)) for level in levels]

    sheet = np.asarray(before_after_grid(plain(*range(10, 19)), plain(*range(110, 119))))
    cell = 4 * 24 + 2
    rows = [16 + cell // 2, 16 + cell + cell // 2, 16 + 2 * cell + 18 + cell // 2, 16 + 3 * cell + 18 + cell // 2]
    columns = [16 + index * (cell + 6) + cell // 2 for index in range(8)]
    found = sheet[np.ix_(rows, columns)][..., 0]
    assert found[:2].tolist() == [list(range(10, 18)), list(range(110, 118))]
    assert found[2:, 0].tolist() == [18, 118]
    assert (found[2:, 1:] == 255).all()
    with pytest.raises(ValueError, match=r"^2 images before and 1 after were given: give the same number of both$"):
        before_after_grid(plain(1, 2), plain(1))
    with pytest.raises(ValueError, match=r"^there are no images to draw"):
        before_after_grid([], [])
