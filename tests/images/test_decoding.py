"""Files with broken metadata are decoded with their orientation; unreadable files are one-sentence errors."""

import io
import struct
import sys
import types
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, TiffImagePlugin

from imagegpt import ColorPalette, ImageGPTImageProcessor
from imagegpt.data.broken_images import trouble_with
from imagegpt.images.decoding import decode_image, open_image
from imagegpt.images.reading import read_image

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
TURNED = np.ascontiguousarray(np.rot90(RGB, -1))  # orientation 6: a quarter turn clockwise
WHITE = (255, 255, 255)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of what is odd in a file


def chunk(kind, content, checksum=None):
    summed = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", summed)


def encode_png(*inserted, behind=b"", array=RGB):
    """A PNG file with extra chunks before and after its pixels."""
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG")
    head, data, tail = content.getvalue().partition(b"IDAT")
    head, size = head[:-4], head[-4:]
    end = chunk(b"IEND", b"")
    return head + b"".join(inserted) + size + data + tail.removesuffix(end) + behind + end


def exif(orientation=6, order=">", num_entries=1, behind=b""):
    entry = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    start = b"MM\0*" if order == ">" else b"II*\0"
    return start + struct.pack(f"{order}IH", 8, num_entries) + entry + behind


def hex_profile(content):
    return b"Raw profile type exif\0" + f"\nexif\n{len(content):8}\n{content.hex()}\n".encode()


def read(content, tmp_path):
    """The image of a file, read by path and as an image opened by the caller."""
    path = tmp_path / "a"
    path.write_bytes(content)
    by_path = np.asarray(read_image(path, WHITE))
    by_content = np.asarray(read_image(open_image(io.BytesIO(content), "a"), WHITE))
    assert np.array_equal(by_path, by_content)
    return by_path


XMP = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
BROKEN = {
    "EXIF that is none": (chunk(b"eXIf", b"garbage!"),),
    "empty EXIF": (chunk(b"eXIf", b""),),
    "a profile that is no EXIF": (chunk(b"tEXt", b"Raw profile type exif\0\nexif\n   4\nzz"),),
    "a profile of one line": (chunk(b"tEXt", b"Raw profile type exif\0x"),),
    "a wrong checksum": (chunk(b"tEXt", b"Comment\0hello", checksum=7),),
    "a short pHYs": (chunk(b"pHYs", b"\0\0"),),
    "a short gAMA": (chunk(b"gAMA", b""),),
    "a text of 5 MB": (chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(5 << 20))),),
    "a colour profile of 5 MB": (chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(5 << 20))),),
    "a colour profile of another method": (chunk(b"iCCP", b"icc\0\7" + zlib.compress(b"profile")),),
    "a short transparent colour": (chunk(b"tRNS", b"\0\0"),),
    "animation that is none": (chunk(b"acTL", b"\0"),),
}


@pytest.mark.parametrize("chunks", BROKEN.values(), ids=BROKEN)
def test_png_with_broken_metadata_is_read(tmp_path, chunks):
    """Regression: none of these could be decoded."""
    assert np.array_equal(read(encode_png(*chunks), tmp_path), RGB)


@pytest.mark.parametrize("chunks", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("stated", ["eXIf", "zTXt", "iTXt"])
def test_orientation_is_applied_despite_broken_metadata(tmp_path, chunks, stated):
    keyword, text = hex_profile(exif()).split(b"\0", 1)
    good = {
        "eXIf": chunk(b"eXIf", exif()),
        "zTXt": chunk(b"zTXt", keyword + b"\0\0" + zlib.compress(text)),
        "iTXt": chunk(b"iTXt", XMP),
    }[stated]
    if good[4:8] == chunks[0][4:8] == b"eXIf" or (stated == "zTXt" and keyword in chunks[0]):
        pytest.skip("a file has one of a kind")
    assert np.array_equal(read(encode_png(*chunks, good), tmp_path), TURNED)


@pytest.mark.parametrize(
    ("behind", "is_cut"),
    [(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(5 << 20))), False), (b"\0\1\0\0tEXtComment", True)],
    ids=["too long", "cut short"],
)
def test_png_with_broken_text_after_pixels_is_read(tmp_path, behind, is_cut):
    content = encode_png(behind=behind)
    assert np.array_equal(read(content[: -12 if is_cut else None], tmp_path), RGB)


EXIF_DATA = {
    "big-endian": (exif(), TURNED),
    "little-endian": (exif(order="<"), TURNED),
    "more entries than there are": (exif(num_entries=9), TURNED),
    "cut within the next entry": (exif(num_entries=2, behind=b"\1\2\3"), TURNED),
    "an entry of unknown type behind": (exif(num_entries=2, behind=b"\xff" * 12), TURNED),
    "no magic number": (b"MM??" + exif()[4:], TURNED),
    "mirrored": (exif(orientation=2), RGB[:, ::-1]),
    "no orientation there is": (exif(orientation=9), RGB),
    "none": (exif(orientation=0), RGB),
    "a wrong place": (b"MM\0*\xff\xff\xff\xff" + exif()[8:], RGB),
    "cut within the orientation": (exif()[:19], RGB),
    "garbage": (b"garbage!", RGB),
    "nothing": (b"", RGB),
}


@pytest.mark.parametrize(("data", "wanted"), EXIF_DATA.values(), ids=EXIF_DATA)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "raw profile"])
def test_exif_orientations(tmp_path, data, wanted, kind):
    if kind == "PNG":
        content = encode_png(chunk(b"eXIf", data))
    elif kind == "raw profile":
        content = encode_png(chunk(b"tEXt", hex_profile(b"Exif\0\0" + data)))
    else:
        whole = io.BytesIO()
        options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True}
        Image.fromarray(RGB).save(whole, kind, exif=b"Exif\0\0" + data, **options)
        content = whole.getvalue()
        if kind == "JPEG":
            stored = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
            wanted = {id(RGB): stored, id(TURNED): np.rot90(stored, -1)}.get(id(wanted), stored[:, ::-1])
    assert np.array_equal(read(content, tmp_path), wanted)


def test_jpeg_with_broken_segments_is_read(tmp_path):
    """Pillow raises an IndexError for the second, and does not recognise the file."""
    content = io.BytesIO()
    Image.fromarray(RGB).save(content, "JPEG", exif=b"Exif\0\0" + exif(), quality=90)
    good = content.getvalue()
    wanted = read(good, tmp_path)
    assert wanted.shape == TURNED.shape
    for broken in (b"\xff\xe2\0\x0eICC_PROFILE\0", b"\xff\xe0\0\7JFIF\0"):
        assert np.array_equal(read(good[:2] + broken + good[2:], tmp_path), wanted)


@pytest.mark.parametrize("cut", [1, 5, 200])
def test_webp_cut_in_its_metadata_is_read(tmp_path, cut):
    content = io.BytesIO()
    Image.fromarray(RGB).save(content, "WEBP", lossless=True, exif=b"Exif\0\0" + exif(behind=bytes(300)))
    assert np.array_equal(read(content.getvalue()[:-cut], tmp_path), TURNED)


def test_damaged_pixels_are_an_error(tmp_path):
    for content in (
        encode_png(chunk(b"eXIf", b"x"))[:-40],
        encode_png()[:60],
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
    ):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(
            ValueError, match=r"a (cannot be decoded, it may be truncated|is not an image that Pillow can)"
        ):
            read_image(tmp_path / "a", WHITE)


def test_orientation_is_applied_only_once(tmp_path):
    """A decoded image is upright RGB; reading it again changes nothing."""
    for part in (chunk(b"eXIf", exif()), chunk(b"iTXt", XMP), chunk(b"tEXt", hex_profile(exif()))):
        once = decode_image(open_image(io.BytesIO(encode_png(part)), "a"), "a")
        assert np.array_equal(np.asarray(once), TURNED)
        assert np.array_equal(np.asarray(decode_image(once, "a")), TURNED)


def test_decompression_bomb_with_broken_metadata_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    (tmp_path / "a").write_bytes(encode_png(chunk(b"gAMA", b"")))
    with pytest.raises(ValueError, match=r"^\S+a (cannot be decoded|is not an image|has more pixels)"):
        read_image(tmp_path / "a", WHITE)


@pytest.mark.parametrize("step", ["open", "load", "convert"])
def test_out_of_memory_names_the_image(tmp_path, monkeypatch, step):
    (tmp_path / "a.png").write_bytes(encode_png(array=RGB[..., 0]))

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(
        *{"open": (Image, step), "load": (ImageFile.ImageFile, step), "convert": (Image.Image, step)}[step], fail
    )
    with pytest.raises(ValueError, match=r"a\.png needs more memory than there is: shrink the image first$") as caught:
        read_image(tmp_path / "a.png", WHITE)
    assert trouble_with(caught.value) == "huge"


def test_out_of_memory_while_resizing_names_the_image(monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", fail)
    with pytest.raises(ValueError, match=r"^image 1 of 2 needs more memory than there is: shrink the image first$"):
        ImageGPTImageProcessor(ColorPalette.grey(4), size=5)([np.zeros((5, 5), np.uint8), RGB])


def heic(brand=b"heic"):
    return struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + b"mif1" + brand


def test_heic_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(heic())
    with pytest.raises(
        ValueError, match=r"a\.heic is a HEIC image, which Pillow reads only with pillow-heif: pip install"
    ):
        read_image(tmp_path / "a.heic", WHITE)


def test_heic_is_read_with_pillow_heif(tmp_path, monkeypatch):
    class Opener(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self):
            self._size, self._mode = (7, 5), "RGB"

        def load(self):
            self.im = Image.fromarray(RGB).im

    register = lambda: Image.register_open("HEIF", Opener, lambda start: start[4:12] == b"ftypheic")  # noqa: E731
    Image.init()  # or the formats that Pillow learns meanwhile are forgotten with the patch
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    (tmp_path / "a.heic").write_bytes(heic())
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.heic", WHITE)), RGB)


def test_avif_is_read_or_says_what_to_install(tmp_path, monkeypatch):
    Image.fromarray(RGB).save(tmp_path / "a.avif", quality=100)
    assert np.asarray(read_image(tmp_path / "a.avif", WHITE)).shape == RGB.shape
    monkeypatch.setattr("imagegpt.images.decoding.features.check", lambda _: False)
    (tmp_path / "a.avif").write_bytes(heic(b"avif"))
    with pytest.raises(
        ValueError, match=r"a\.avif is an AVIF image, which this Pillow was built without: pip install -U"
    ):
        read_image(tmp_path / "a.avif", WHITE)


def tiff_bytes(compression=None, orientation=6):
    """A TIFF file with a description, a resolution, XMP and a colour profile."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[274], tags[270], tags[282], tags[700], tags[315] = orientation, "a description", 72.0, b"<x/>" * 9, "somebody"
    content = io.BytesIO()
    Image.fromarray(RGB).save(content, "TIFF", compression=compression, tiffinfo=tags, icc_profile=bytes(200))
    return content.getvalue()


def with_entry(content, tag, changed):
    """A TIFF file with one directory entry changed: tag, type, count, value or offset."""
    (start,) = struct.unpack_from("<I", content, 4)
    (num_entries,) = struct.unpack_from("<H", content, start)
    for place in range(start + 2, start + 2 + 12 * num_entries, 12):
        entry = struct.unpack_from("<HHII", content, place)
        if entry[0] == tag:
            return content[:place] + struct.pack("<HHII", *changed(*entry)) + content[place + 12 :]
    raise AssertionError(f"there is no tag {tag}")


TIFF_CHANGES = {
    "a place behind the end": lambda tag, kind, num, _: (tag, kind, num, 1 << 31),
    "a place at the end": lambda tag, kind, num, _: (tag, kind, num, 600),
    "too many values": lambda tag, kind, _, value: (tag, kind, (1 << 32) - 1, value),
    "places of directories": lambda tag, _, num, value: (tag, 13, num, value),
    "fractions": lambda tag, _, num, value: (tag, 5, num, value),
    "an unknown type": lambda tag, _, num, value: (tag, 99, num, value),
    "the tag of EXIF data": lambda _, *others: (34665, *others),
    "nothing but ones": lambda tag, *_: (tag, (1 << 16) - 1, (1 << 32) - 1, (1 << 32) - 1),
}


@pytest.mark.parametrize("change", TIFF_CHANGES.values(), ids=TIFF_CHANGES)
@pytest.mark.parametrize("tag", [270, 282, 315, 700, 34675])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_tiff_with_broken_tags_is_read(tmp_path, compression, tag, change):
    """Pillow stops at a tag whose value is cut off, so a broken description made the image unreadable."""
    content = with_entry(tiff_bytes(compression), tag, change)
    assert np.array_equal(read(content, tmp_path), TURNED)


@pytest.mark.parametrize(("orientation", "wanted"), [(1, RGB), (2, RGB[:, ::-1]), (3, RGB[::-1, ::-1]), (6, TURNED)])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_tiff_is_turned_upright(tmp_path, compression, orientation, wanted):
    assert np.array_equal(read(tiff_bytes(compression, orientation), tmp_path), wanted)


def test_tiff_with_invalid_orientation_is_unchanged(tmp_path):
    for change in ((274, 3, 1, 9), (274, 2, 2, 6), (274, 3, 1 << 20, 1 << 31)):
        assert np.array_equal(read(with_entry(tiff_bytes(), 274, lambda *_: change), tmp_path), RGB)  # noqa: B023


def test_damaged_tiff_pixels_are_an_error(tmp_path):
    for tag in (256, 258, 273, 279):
        content = with_entry(tiff_bytes("tiff_lzw"), tag, TIFF_CHANGES["a place behind the end"])
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(ValueError, match=r"a (cannot be decoded|is not an image that Pillow can|has more pixels)"):
            read_image(tmp_path / "a", WHITE)


@pytest.mark.parametrize("place", ["behind the pixels", "nowhere"])
def test_a_png_file_without_its_palette_is_refused(tmp_path, place):
    """Pillow opens it, and fails with an assertion when it is converted."""
    header = struct.pack(">IIBBBBB", 2, 2, 8, 3, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(6))), chunk(b"IEND", b"")]
    if place != "nowhere":
        chunks.insert(2, chunk(b"PLTE", bytes(768)))
    (tmp_path / "a").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    with pytest.raises(ValueError, match=r"a cannot be decoded, .* \(it has no palette before its pixels\)"):
        read_image(tmp_path / "a", WHITE)
