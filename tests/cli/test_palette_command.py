"""`imagegpt palette fit`: the palette of some images, and two pictures of it."""

import numpy as np
import pytest
from PIL import Image

from imagegpt import ColorPalette


@pytest.fixture
def pictures(workplace):
    """The folder "src" with twelve images of 8 x 8 pixels; returns them."""
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    (workplace / "src").mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(workplace / "src" / f"{index:02d}.png")
    return images


def test_a_palette_is_fitted(run, workplace, pictures):
    status, out, err = run("palette", "fit", "src", "--out", "pal", "--colors", 16, "--size", 8, "--seed", 2)
    assert status == 0
    assert err.splitlines()[-1] == "Next: imagegpt encode src ./encoded --palette ./pal --size 8"
    palette = ColorPalette.load("pal")
    assert palette == ColorPalette.fit(pictures, 16, seed=2)
    assert out.splitlines() == [
        "16 colours from 12 images: pal",
        f"reproduction of 12 of them: {palette.report(pictures)}",
    ]
    assert sorted(path.name for path in (workplace / "pal").iterdir()) == [
        "before_after.png", "kmeans_centers.npy", "palette.png",
    ]  # fmt: skip
    with Image.open("pal/palette.png") as drawn:
        assert set(map(tuple, palette.rgb.tolist())) <= {color for _, color in drawn.getcolors(1000)}
    with Image.open("pal/before_after.png") as drawn:
        colors = {color for _, color in drawn.getcolors(10_000)}
    assert {tuple(color) for color in pictures.reshape(-1, 3).tolist()} <= colors


def test_grey_levels_of_a_sample(run, workplace, pictures):
    command = ["palette", "fit", "src", "--out", "pal", "--colors", 4, "--size", 8, "--grey", "--max-images", 5]
    status, out, _ = run(*command)
    assert (status, out.splitlines()[0]) == (0, "4 levels of grey from 5 images: pal")
    assert ColorPalette.load("pal").is_grey
    assert run(*command)[0] == 2  # it is there
    assert run(*command, "--force")[0] == 0


def test_broken_images_are_told(run, workplace, pictures):
    (workplace / "src" / "00.png").write_bytes(b"x")
    command = ["palette", "fit", "src", "--out", "pal", "--colors", 4]
    status, out, err = run(*command)
    assert (status, out) == (2, "")
    assert "error: 1 of 12 images of src are broken and 5 % may be (00.png is unreadable): repair or remove" in err
    status, out, err = run(*command, "--max-broken", 0.1)
    assert (status, out.splitlines()[0]) == (1, "4 colours from 11 images: pal")
    assert "skipped (unreadable): src/00.png is not an image" in err
    assert "1 broken image skipped: see pal/broken-images.txt\n" in err
    listed = (workplace / "pal" / "broken-images.txt").read_text()
    assert listed.startswith("00.png\tunreadable\tsrc/00.png is not an image")
    (workplace / "src" / "00.png").unlink()
    assert run(*command, "--force")[0] == 0
    assert not (workplace / "pal" / "broken-images.txt").exists()


def test_a_split_of_the_digits(run, workplace):
    status, out, _ = run("palette", "fit", "digits", "--split", "test", "--out", "pal", "--colors", 17, "--size", 8)
    assert (status, out.splitlines()[0]) == (0, "17 levels of grey from 360 images: pal")
    assert "PSNR inf dB" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["src", "--out", "pal", "--colors", "1"],
            "Invalid value for '--colors': 1 is not an integer from 2 to 65,536",
        ),
        (["src", "--out", "pal", "--colors", "800", "--size", "8"], "the images have "),
        (["src", "--out", "no/pal"], "there is no folder no: create it first, or choose another path"),
        (["src", "--out", "src"], "src exists: choose another path, or replace it with --force"),
        (["src", "--out", "src", "--force"], "src contains 00.png, which is not part of a model"),
        (["src", "--out", "pal", "--size", "0"], "Invalid value for '--size'"),
        (["src", "--out", "pal", "--seed", "-1"], "Invalid value for '--seed'"),
        (["src", "--out", "pal", "--max-images", "0"], "Invalid value for '--max-images'"),
        (["src", "--out", "pal", "--split", "train"], "src has no splits and 'train' was asked for"),
        (["src"], "Missing option '--out'"),
        (["digits", "--out", "pal"], "digits has the splits train, validation, test: choose one"),
        (["./nowhere", "--out", "pal"], "'./nowhere' does not exist: check the path"),
        (["cat.png", "--out", "pal"], "cat.png is no file that holds many images"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(run, workplace, pictures, names_in, arguments, message):
    before = names_in()
    status, out, err = run("palette", "fit", *arguments)
    assert (status, out) == (2, "")
    assert err.replace(f"{workplace}/", "").startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert names_in() == before
