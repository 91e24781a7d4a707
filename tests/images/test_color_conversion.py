"""Every way to be transparent, grey or coloured becomes the same RGB, in memory that the picture bounds."""

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
from imagegpt.images.decoding import open_picture
from imagegpt.images.reading import read_image, resize_image

BLUE = (0, 0, 255)


def png(rows, depth, channels=1, key=None):
    """A PNG file of grey or RGB values of 1 to 16 bits, one of them transparent; Pillow writes no such files."""

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
    return np.asarray(read_image(open_picture(io.BytesIO(content), "a"), background))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_one_transparent_level_of_grey_at_every_depth(tmp_path, depth):
    """Of 2, 4 and 16 bits it was not transparent at all, as the level is in the file's own bits."""
    highest = 2**depth - 1
    for key in (0, highest, highest // 3):
        levels = sorted({0, key, highest})
        content = png([levels], depth, key=key)
        wanted = [BLUE if level == key else (round(255 * level / highest),) * 3 for level in levels]
        assert read(content)[0].tolist() == [list(colour) for colour in wanted]
        (tmp_path / "a.png").write_bytes(content)
        assert np.array_equal(np.asarray(read_image(tmp_path / "a.png", BLUE)), read(content))


@pytest.mark.parametrize("depth", [8, 16])
def test_one_transparent_colour_at_every_depth(depth):
    """Of 16 bits the first 8 were compared with the last 8 of the transparent colour."""
    key = (3, 200, 77) if depth == 8 else (0x1234, 0xFF00, 0x0042)
    nearly = [(key[0], key[1], key[2] + 1), (key[0] + 1, key[1], key[2]), (0x34, 0, 0x42)]
    reduced = [[value >> (depth - 8) for value in colour] for colour in nearly]
    assert read(png([[key, *nearly]], depth, 3, key))[0].tolist() == [list(BLUE), *reduced]


def test_a_picture_may_be_read_again():
    """Reading a lazily opened picture decodes it; the next reading sees it decoded."""
    for content in (png([[0, 1, 3]], 2, key=1), png([[0, 7, 15]], 4, key=7), png([[0, 500, 65_535]], 16, key=500)):
        picture = open_picture(io.BytesIO(content), "a")
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


def test_colour_profiles_become_srgb():
    """A Display P3 or Adobe RGB photograph was read as if its numbers were sRGB's."""
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
def test_profiles_that_do_not_fit_change_nothing(profile):
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
    yield "16 bits with a transparent level", open_picture(io.BytesIO(png([[0, 9, 9, 7]] * 50, 16, key=9)), "a")
    profiled = rgb.copy()
    profiled.info["icc_profile"] = gamma_profile(1.0)
    yield "profile", profiled


def test_converting_rows_at_a_time_changes_nothing(monkeypatch):
    for name, picture in pictures():
        whole = np.asarray(read_image(picture, BLUE))
        with monkeypatch.context() as patch:
            patch.setattr(color_conversion, "_STRIP_PIXELS", 3 * picture.width)
            assert np.array_equal(np.asarray(read_image(picture, BLUE)), whole), name
    floats = np.random.default_rng(0).random((50, 41, 3))
    whole = np.asarray(read_image(floats, BLUE))
    monkeypatch.setattr(color_conversion, "_STRIP_PIXELS", 100)
    assert np.array_equal(np.asarray(read_image(floats, BLUE)), whole)


def test_the_extremes_of_32_bit_pictures_are_those_of_all_rows(monkeypatch):
    monkeypatch.setattr(color_conversion, "_STRIP_PIXELS", 4)
    values = np.zeros((9, 4), np.float32)
    values[1, 1], values[7, 2] = -3, 8
    with pytest.raises(ValueError, match=r"the image's floats run from -3 to 8: they must lie in 0 to 1"):
        read_image(Image.fromarray(values), BLUE)
    values[5, 0] = np.nan
    with pytest.raises(ValueError, match="the image holds NaN"):
        read_image(Image.fromarray(values), BLUE)


@pytest.mark.parametrize("resample", list(Image.Resampling))
@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (40, 900), (900, 41)])
def test_a_part_of_a_scaled_picture_needs_no_scaled_picture(monkeypatch, shape, resample):
    """Whichever way it is computed, at most some values differ by a level, or by a pixel for the nearest."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize(shape[::-1], Image.Resampling.BICUBIC)
    size = {"height": 24, "width": 32}
    whole = resize_image(picture, size, "crop", resample).astype(int)
    monkeypatch.setattr("imagegpt.images.reading._MOST_SCALED_PIXELS", 0)
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


@pytest.mark.parametrize(
    ("kind", "limit"),
    [("narrow", 6), *(pytest.param(kind, 14, marks=pytest.mark.slow) for kind in ("F", "RGBA", "hash"))],
)
def test_memory_is_bounded_by_the_picture(kind, limit):
    """Bytes a pixel. 1,000,000 x 1 took 5 GB, floats 40 bytes a pixel; its RGB takes 4, as its source."""
    done = subprocess.run([sys.executable, "-c", BOUNDED, kind], capture_output=True, text=True, check=True)
    assert float(done.stdout) < limit


def test_random_crops_of_narrow_pictures_are_not_scaled_as_a_whole(monkeypatch):
    resize, sizes = Image.Image.resize, []
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a, **kw: sizes.append(size) or resize(self, size, *a, **kw)
    )
    narrow = np.zeros((1, 1_000_000, 3), np.uint8)
    assert random_resized_crop(narrow, np.random.default_rng(0), (32, 32)).shape == (32, 32, 3)
    assert center_crop(narrow, None, (32, 32)).shape == (32, 32, 3)
    assert max(max(size) for size in sizes) == 224
