"""Conversion of every Pillow mode to sRGB, with memory bounded by the image size."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from icc_profiles import gamma_profile
from PIL import Image, ImageCms

from imagegpt.data.augmentation import center_crop, random_resized_crop
from imagegpt.images import color_conversion
from imagegpt.images.decoding import open_image
from imagegpt.images.reading import read_image, resize_image

BLUE = (0, 0, 255)


def png(rows, depth, channels=1, key=None):
    """A PNG file with 1 to 16 bits and a transparent level or colour; Pillow cannot write such files."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    lines = b""
    for row in np.array(rows).reshape(len(rows), -1):
        bits = "".join(f"{value:0{depth}b}" for value in row)
        bits += "0" * (-len(bits) % 8)
        lines += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    size = struct.pack(">IIBBBBB", len(rows[0]), len(rows), depth, 0 if channels == 1 else 2, 0, 0, 0)
    transparent = b"" if key is None else chunk(b"tRNS", struct.pack(f">{channels}H", *np.atleast_1d(key)))
    content = chunk(b"IHDR", size) + transparent + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def read(content, background=BLUE):
    return np.asarray(read_image(open_image(io.BytesIO(content), "a"), background))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_transparent_grey_level_at_every_bit_depth(tmp_path, depth):
    """Regression: with 2, 4 and 16 bits it was opaque, because the level has the file's bit depth."""
    highest = 2**depth - 1
    for key in (0, highest, highest // 3):
        levels = sorted({0, key, highest})
        content = png([levels], depth, key=key)
        wanted = [BLUE if level == key else (round(255 * level / highest),) * 3 for level in levels]
        assert read(content)[0].tolist() == [list(colour) for colour in wanted]
        (tmp_path / "a.png").write_bytes(content)
        assert np.array_equal(np.asarray(read_image(tmp_path / "a.png", BLUE)), read(content))


@pytest.mark.parametrize("depth", [8, 16])
def test_transparent_color_at_every_bit_depth(depth):
    """Regression: the high bytes of 16-bit values were compared with the colour's low bytes."""
    key = (3, 200, 77) if depth == 8 else (0x1234, 0xFF00, 0x0042)
    nearly = [(key[0], key[1], key[2] + 1), (key[0] + 1, key[1], key[2]), (0x34, 0, 0x42)]
    reduced = [[value >> (depth - 8) for value in colour] for colour in nearly]
    assert read(png([[key, *nearly]], depth, 3, key))[0].tolist() == [list(BLUE), *reduced]


def test_image_can_be_read_twice():
    """Reading a lazily opened image decodes it; the second read sees a decoded image."""
    for content in (png([[0, 1, 3]], 2, key=1), png([[0, 7, 15]], 4, key=7), png([[0, 500, 65_535]], 16, key=500)):
        picture = open_image(io.BytesIO(content), "a")
        first = np.asarray(read_image(picture, BLUE))
        assert np.array_equal(np.asarray(read_image(picture, BLUE)), first)
        assert np.array_equal(np.asarray(read_image(read_image(picture, BLUE), BLUE)), first)
        assert first[0, 1].tolist() == list(BLUE)


def srgb_of(value, gamma):
    linear = (value / 255) ** gamma
    return 255 * (12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055)


def saved(picture, **options):
    content = io.BytesIO()
    picture.save(content, "PNG", **options)
    return content.getvalue()


def test_color_profiles_are_converted_to_srgb():
    """Regression: Display P3 and Adobe RGB values were read as sRGB."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    grey = levels[None]
    rgb = np.stack([grey] * 3, axis=-1)
    wanted = [srgb_of(int(level), 1.0) for level in levels]
    for array, space in ((rgb, "RGB "), (grey, "GRAY")):
        found = read(saved(Image.fromarray(array), icc_profile=gamma_profile(1.0, space)))
        assert found[0, :, 1] == pytest.approx(wanted, abs=2)
        assert np.ptp(found[0].astype(int), axis=1).max() <= 1  # what is grey stays grey
    linear = {"icc_profile": gamma_profile(1.0)}
    paletted = Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE)
    assert read(saved(paletted, **linear))[0, :, 1] == pytest.approx(wanted, abs=2)
    opaque = Image.fromarray(rgb).convert("RGBA")
    assert read(saved(opaque, **linear))[0, :, 1] == pytest.approx(wanted, abs=2)
    opaque.putalpha(0)
    assert (read(saved(opaque, **linear))[0] == BLUE).all()  # the background is sRGB already
    in_memory = Image.fromarray(rgb)
    in_memory.info.update(linear)
    once = read_image(in_memory, BLUE)
    assert np.asarray(once)[0, :, 1] == pytest.approx(wanted, abs=2)
    assert np.array_equal(np.asarray(read_image(once, BLUE)), np.asarray(once))  # and not a second time
    assert in_memory.tobytes() == rgb.tobytes()


def test_profiles_of_srgb_change_nothing():
    every = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(read(saved(Image.fromarray(every), icc_profile=srgb)), every)


@pytest.mark.parametrize(
    "profile",
    [
        b"garbage",
        b"",
        gamma_profile(1.0)[:200],
        gamma_profile(1.0, "GRAY"),
        gamma_profile(1.0).replace(b"rTRC", b"zTRC"),
    ],
    ids=["garbage", "empty", "cut", "of grey", "without a curve"],
)
def test_invalid_profiles_are_ignored(profile):
    rgb = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    assert np.array_equal(read(saved(Image.fromarray(rgb), icc_profile=profile)), rgb)
    grey = saved(Image.fromarray(rgb[..., 0]), icc_profile=gamma_profile(1.0))  # a common mistake
    assert np.array_equal(read(grey)[..., 1], rgb[..., 0])


def pictures():
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (50, 41, 3), np.uint8))
    for mode in ("1", "L", "LA", "La", "P", "PA", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB"):
        yield (
            mode,
            rgb.convert("LA").convert(mode)
            if mode == "La"
            else rgb.convert("RGBA").convert(mode)
            if mode == "RGBa"
            else rgb.convert(mode),
        )
    yield "I;16", Image.fromarray(rng.integers(0, 65_536, (50, 41), np.uint16))
    yield "I", Image.fromarray(rng.integers(0, 65_536, (50, 41), np.int32))
    yield "F", Image.fromarray(rng.random((50, 41), np.float32))
    yield "16 bits with a transparent level", open_image(io.BytesIO(png([[0, 9, 9, 7]] * 50, 16, key=9)), "a")
    profiled = rgb.copy()
    profiled.info["icc_profile"] = gamma_profile(1.0)
    yield "profile", profiled


def test_conversion_in_strips_is_equivalent(monkeypatch):
    for name, picture in pictures():
        whole = np.asarray(read_image(picture, BLUE))
        with monkeypatch.context() as patch:
            patch.setattr(color_conversion, "_STRIP_PIXELS", 3 * picture.width)
            assert np.array_equal(np.asarray(read_image(picture, BLUE)), whole), name
    floats = np.random.default_rng(0).random((50, 41, 3))
    whole = np.asarray(read_image(floats, BLUE))
    monkeypatch.setattr(color_conversion, "_STRIP_PIXELS", 100)
    assert np.array_equal(np.asarray(read_image(floats, BLUE)), whole)


def test_range_of_32_bit_images_covers_all_strips(monkeypatch):
    monkeypatch.setattr(color_conversion, "_STRIP_PIXELS", 4)
    values = np.zeros((9, 4), np.float32)
    values[1, 1], values[7, 2] = -3, 8
    with pytest.raises(ValueError, match=r"the image's floats range from -3 to 8: they must be 0 to 1"):
        read_image(Image.fromarray(values), BLUE)
    values[5, 0] = np.nan
    with pytest.raises(ValueError, match="the image contains NaN"):
        read_image(Image.fromarray(values), BLUE)


@pytest.mark.parametrize("resample", list(Image.Resampling))
@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (40, 900), (900, 41)])
def test_crop_without_resizing_the_whole_image(monkeypatch, shape, resample):
    """Both ways differ in few values, by one level, or one pixel for nearest neighbour."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize(shape[::-1], Image.Resampling.BICUBIC)
    size = {"height": 24, "width": 32}
    whole = resize_image(picture, size, "crop", resample).astype(int)
    monkeypatch.setattr("imagegpt.images.reading._MAX_RESIZED_PIXELS", 0)
    part = resize_image(picture, size, "crop", resample).astype(int)
    differences = np.abs(part - whole)
    assert differences.max() <= (20 if resample == Image.Resampling.NEAREST else 1)
    assert (differences > 0).mean() < 0.02


BOUNDED = """
import resource, sys
import numpy as np
from PIL import Image
from imagegpt.data.identity import pixel_hash
from imagegpt.images.reading import read_image, resize_image
def use(picture):
    resize_image(read_image(picture, (0, 0, 255)), {"height": 32, "width": 32}, "crop", 2)
use(Image.new("L", (9, 9)))
before, side = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 3_000
if sys.argv[1] == "hash":
    pixel_hash(Image.new("F", (side, side)))
elif sys.argv[1] == "narrow":
    use(Image.new("L", (400_000, 1))), use(Image.new("RGBA", (1, 400_000)))
    use(np.zeros((1, 400_000, 3)))
else:
    use(Image.new(sys.argv[1], (side, side)))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / side**2)
"""


BY_MODE = [pytest.param(kind, 14, marks=pytest.mark.slow) for kind in ("F", "RGBA", "hash")]


@pytest.mark.parametrize(("kind", "limit"), [("narrow", 6), *BY_MODE])
def test_memory_is_bounded_by_image_size(kind, limit):
    """Bytes per pixel. Regression: 1,000,000 x 1 pixels took 5 GB, floats 40 bytes per pixel."""
    done = subprocess.run([sys.executable, "-c", BOUNDED, kind], capture_output=True, text=True, check=True)
    assert float(done.stdout) < limit


def test_random_crops_of_narrow_images_use_bounded_memory(monkeypatch):
    resize, sizes = Image.Image.resize, []
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a, **kw: sizes.append(size) or resize(self, size, *a, **kw)
    )
    narrow = np.zeros((1, 1_000_000, 3), np.uint8)
    assert random_resized_crop(narrow, np.random.default_rng(0), (32, 32)).shape == (32, 32, 3)
    assert center_crop(narrow, None, (32, 32)).shape == (32, 32, 3)
    assert max(max(size) for size in sizes) == 224
