"""Masks of every format and size keep the pixels that are not black."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from imagegpt.images.masks import read_mask

HALF = np.zeros((8, 8), bool)
HALF[:4] = True


@pytest.mark.parametrize("level", [1, 255, 1000, 65_535])
@pytest.mark.parametrize("kind", ["array", "tensor", "I;16", "I", "F", "I;16 file", "I;16 TIFF", "I TIFF", "F TIFF"])
def test_every_nonzero_level_keeps_pixels(tmp_path, kind, level):
    """Regression: 16-bit levels below 129 counted as black, and levels of mode F above 1 were refused."""
    values = HALF * np.array(level, {"I": np.int32, "F": np.float32}.get(kind[:2].strip(), np.uint16))
    if kind == "tensor":
        mask = torch.from_numpy(values.astype(np.int32))
    elif kind == "array":
        mask = values
    else:
        mask = Image.fromarray(values)
        if " " in kind:
            path = tmp_path / ("a.png" if kind == "I;16 file" else "a.tiff")
            mask.save(path)
            mask = path
        else:
            assert mask.mode == kind
    assert np.array_equal(read_mask(mask, 8, 8), HALF)


def test_a_transparent_level_of_16_bits_is_black(tmp_path):
    values = np.where(HALF, 7, 65_535).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", transparency=65_535)
    assert np.array_equal(read_mask(tmp_path / "a.png", 8, 8), HALF)


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "JPEG2000"])
def test_lossy_formats_use_a_threshold(file_format):
    """Regression: black is not exact in lossy formats, so pixels around edges were kept."""
    rows, columns = np.mgrid[:64, :64]
    drawn = (rows - 30) ** 2 + (columns - 33) ** 2 < 400
    content = io.BytesIO()
    options = {"quality_mode": "rates", "quality_layers": [12]} if file_format == "JPEG2000" else {"quality": 60}
    Image.fromarray(drawn * np.uint8(255)).convert("RGB").save(content, file_format, **options)
    with Image.open(content) as picture:
        assert (np.asarray(picture).max(axis=-1) > 0).mean() > drawn.mean() + 0.01
        kept = read_mask(picture, 64, 64)
    assert (kept != drawn).mean() < 0.01


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "imagegpt.images.masks"]


@pytest.mark.parametrize("factor", [1, 2, 3, 7])
def test_block_masks_are_reduced_without_warning(caplog, factor):
    kept = np.random.default_rng(0).random((8, 12)) < 0.5
    large = kept.repeat(factor, axis=0).repeat(factor, axis=1)
    assert np.array_equal(read_mask(large, 8, 12), kept)
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (
            (100, 100),
            "the mask is 100 x 100 pixels, the model's images are 8 x 8: it was resized by nearest neighbour",
        ),
        ((16, 16), "the mask is 16 x 16 pixels, the model's images are 8 x 8: it was resized by nearest neighbour"),
        ((4, 4), "the mask is 4 x 4 pixels, the model's images are 8 x 8: it was resized by nearest neighbour"),
        (
            (40, 80),
            "the mask is 80 x 40 pixels, the model's images are 8 x 8: it was cropped and resized by nearest",
        ),
    ],
)
def test_mask_of_another_size_is_resized_with_warning(caplog, shape, expected):
    """Regression: it was refused, as was a multiple of the size with partly black blocks."""
    mask = np.zeros(shape, bool)
    mask[: shape[0] // 2] = True
    mask[0, 0] ^= shape == (16, 16)
    kept = read_mask(mask, 8, 8)
    assert np.array_equal(kept[1:], HALF[1:])
    assert kept[0, 1:].all()
    (message,) = warnings_of(caplog)
    assert message.startswith(expected)


def test_mask_is_cropped_like_its_image():
    mask = np.zeros((10, 30), bool)
    mask[:, 10:20] = True
    assert read_mask(mask, 5, 5).all()
    assert read_mask(mask, 5, 6, "squash").tolist() == [[False, False, True, True, False, False]] * 5


def test_resized_mask_warns_on_the_command_line(tmp_path, forkserver):
    Image.new("1", (40, 80)).save(tmp_path / "mask.png")
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    command = ["-m", "imagegpt", "complete", "a.png", "--mask", "mask.png", "--num", "1"]
    done = forkserver.run(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the mask is 40 x 80 pixels, the model's images are 8 x 8: it was cropped and resized" in done.stderr


def png16(values):
    """A PNG file of 16 bits: grey with transparency, RGB or RGBA."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = values.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff16(values, order):
    """A TIFF file of 16 bits: RGB, or RGBA with transparency of its own."""
    height, width, channels = values.shape
    tags = [
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, None), (259, 3, 1, 1), (262, 3, 1, 2)),
        *((273, 4, 1, None), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, values.size * 2)),
        *([(338, 3, 1, 2)] if channels == 4 else []),
    ]
    behind = 8 + 2 + 12 * len(tags) + 4
    entries = []
    for tag, kind, num, value in tags:
        place = {258: behind, 273: behind + 8}.get(tag, value)
        packed = struct.pack(f"{order}I" if kind == 4 or num > 1 else f"{order}Hxx", place)
        entries.append(struct.pack(f"{order}HHI", tag, kind, num) + packed)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    bits = struct.pack(f"{order}4H", 16, 16, 16, 16)
    return head + b"".join(entries) + bytes(4) + bits + values.astype(f"{order}u2").tobytes()


@pytest.mark.parametrize("level", [1, 128, 255, 256, 65_535])
@pytest.mark.parametrize("kind", ["grey and alpha", "RGB", "RGBA", "TIFF <", "TIFF >", "TIFF RGBA <"])
def test_every_nonzero_16_bit_color_keeps_pixels(tmp_path, kind, level):
    """Pillow reads only the high bytes, in which levels below 256 are 0."""
    channels = 2 if kind.startswith("grey") else 4 if "RGBA" in kind else 3
    values = np.zeros((8, 8, channels), np.uint16)
    values[:4, :, 0 if channels == 2 else 1] = level
    if channels != 3:
        values[..., -1] = 65_535
        values[0, 0, -1] = 0  # transparent: black, whatever its colour
    path = tmp_path / ("a.tiff" if "TIFF" in kind else "a.png")
    path.write_bytes(tiff16(values, ">" if ">" in kind else "<") if "TIFF" in kind else png16(values))
    wanted = HALF.copy()
    wanted[0, 0] = channels == 3
    assert np.array_equal(read_mask(path, 8, 8), wanted)
    with Image.open(path) as picture:
        assert np.array_equal(read_mask(picture, 8, 8), wanted)


def test_low_bytes_are_oriented_like_the_image(tmp_path):
    values = np.zeros((8, 8, 3), np.uint16)
    values[:, :4] = 5
    content = png16(values)
    exif = b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4)
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    (tmp_path / "a.png").write_bytes(content[:33] + chunk + content[33:])
    assert np.array_equal(read_mask(tmp_path / "a.png", 8, 8), HALF)


def test_long_narrow_mask_uses_bounded_memory():
    """Regression: it was compared with an array of 8,000 x 8,000; taller masks took gigabytes."""
    mask = np.zeros((8_000, 8), np.uint8)
    tracemalloc.start()
    try:
        assert not read_mask(mask, 8, 8).any()
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
