"""HEIC photographs with EXIF rotation and Display P3 colours, if `pillow-heif` is installed."""

import io
from typing import Any

import numpy as np
import pytest
from icc_profiles import DISPLAY_P3, SRGB, gamma_profile
from PIL import Image

from imagegpt import ColorPalette, ImageGPTImageProcessor
from imagegpt.data.sources.registry import open_images
from imagegpt.images.reading import read_image

pillow_heif = pytest.importorskip("pillow_heif", exc_type=ImportError)

WHITE = (255, 255, 255)
COLOURS = np.array([[200, 100, 50], [60, 140, 90], [90, 80, 160], [120, 120, 120]], np.uint8)
STORED = COLOURS.reshape(2, 2, 3).repeat(16, axis=0).repeat(24, axis=1)  # 32 x 48, in four fields


def heic(orientation=1, profile=None):
    """A HEIC file, nearly lossless."""
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    options = {"quality": -1, "chroma": 444, "exif": exif.tobytes(), "icc_profile": profile}
    Image.fromarray(STORED).save(content, "HEIF", **options)
    return content.getvalue()


def in_srgb(colours, gamma):
    """The same colours, whose numbers were those of Display P3."""
    linear = ((colours / 255.0) ** gamma @ np.array(DISPLAY_P3) @ np.linalg.inv(np.array(SRGB))).clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_heic_photograph_is_upright_srgb(tmp_path, orientation, turns):
    (tmp_path / "a.heic").write_bytes(heic(orientation, gamma_profile(2.2, colorants=DISPLAY_P3)))
    found = np.asarray(read_image(tmp_path / "a.heic", WHITE))
    fields = in_srgb(COLOURS, 2.2).reshape(2, 2, 3)
    assert np.abs(fields - COLOURS.reshape(2, 2, 3)).max() > 10  # the profile matters
    wanted = np.rot90(fields.repeat(16, axis=0).repeat(24, axis=1), turns)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 6


def test_heic_folders_need_no_registration(tmp_path, monkeypatch):
    content = heic()
    Image.init()  # or the formats that Pillow learns meanwhile are forgotten with the patch
    monkeypatch.setattr(Image, "OPEN", {kind: how for kind, how in Image.OPEN.items() if kind != "HEIF"})
    monkeypatch.setattr(Image, "ID", [kind for kind in Image.ID if kind != "HEIF"])
    (tmp_path / "a.HEIC").write_bytes(content)
    image: Any = open_images(tmp_path)[0].image
    ids = ImageGPTImageProcessor(ColorPalette.grey(256), size=8)([image])["input_ids"]
    assert np.asarray(ids).shape == (1, 64)


def test_damaged_heic_is_one_sentence(tmp_path):
    for cut in (100, 300):
        (tmp_path / "a.heic").write_bytes(heic()[:cut])
        with pytest.raises(ValueError, match=r"a\.heic (cannot be decoded|is not an image that Pillow can read)"):
            read_image(tmp_path / "a.heic", WHITE)
