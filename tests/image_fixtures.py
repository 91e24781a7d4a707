"""Fixtures with images and a processor, for the tests of `data` and `jobs`."""

import io

import numpy as np
import pytest
from PIL import Image

from imagegpt import ColorPalette, ImageGPTImageProcessor


@pytest.fixture(scope="session")
def palette():
    """64 colours that are no regular grid."""
    return ColorPalette.from_rgb(np.random.default_rng(5).integers(0, 256, (64, 3)))


@pytest.fixture(scope="session")
def processor(palette):
    return ImageGPTImageProcessor(palette, size=8)


@pytest.fixture(scope="session")
def rgb():
    """Thirty images of 8 x 8 pixels, uint8."""
    return np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """`datasets` keeps what it makes of parquet in the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def png(image):
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(name="png")
def _png():
    """The content of a PNG file, of an array."""
    return png


@pytest.fixture
def save(tmp_path):
    """Write arrays as image files below tmp_path, by their names."""

    def write(**folders):
        for folder, files in folders.items():
            for name, image in files.items():
                path = tmp_path / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)

    return write


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """200 files in two classes: JPEG and PNG, colour, grey, RGBA, with a palette, 16 bits; two of them are bad.

    dog/150.jpg is cut short, dog/151.png has more pixels than Pillow allows.
    """
    rng = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("photos")
    for index in range(200):
        small = rng.integers(0, 256, (4, 5, 4), dtype=np.uint8)
        height, width = (int(side) for side in rng.integers(20, 60, 2))
        picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        mode = ("RGB", "L", "RGBA", "P", "RGB", "I;16")[index % 6]
        suffix = "jpg" if mode == "RGB" or index % 12 == 1 else "png"
        if mode == "I;16":
            picture = Image.fromarray(rng.integers(0, 65_536, (height, width), dtype=np.uint16))
        else:
            picture = picture.convert("RGB").convert(mode) if mode == "P" else picture.convert(mode)
        path = folder / ("cat" if index < 100 else "dog") / f"{index:03d}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        if index == 151:
            path = path.with_suffix(".png")
            picture = Image.new("1", (12_000, 12_000))
        picture.save(path)
    broken = folder / "dog" / "150.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    return folder
