"""Image files of every format that Pillow writes, read as images and as masks."""

import hashlib
import io
import warnings
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from imagegpt import ColorPalette, ImageGPTImageProcessor
from imagegpt.images.masks import read_mask

from .cases import Kind
from .formats import damage_jpeg, damage_png, damage_riff, damage_tiff

_MODES = {
    "AVIF": "RGB",
    "GIF": "P",
    "JPEG2000": "RGB",
    "MSP": "1",
    "PCX": "RGB",
    "QOI": "RGB",
    "XBM": "1",
    "ICNS": "RGBA",
}
_SIDES = {"ICNS": 128, "ICO": 32, "AVIF": 16}


class Pictures(Kind):
    """Single images."""

    name = "pictures"
    num_cases = 2_000
    first_parser = "Pillow recognises the file and reads its size"
    imports = ("imagegpt", "imagegpt.images.masks", "PIL.Image", "PIL.ImageCms")
    formats: ClassVar = {".png": damage_png, ".jpeg": damage_jpeg, ".webp": damage_riff, ".tiff": damage_tiff}

    def prepare(self) -> None:
        """Write noise in many formats, with colour profiles, orientations and transparency."""
        for name, content in _pictures().items():
            folder = self.folder / name.replace(".", "-")
            folder.mkdir()
            (folder / name).write_bytes(content)

    def passes_first_parser(self, case_folder: Path) -> bool:
        """See `first_parser`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for path in case_folder.iterdir():
                with Image.open(path):
                    pass
        return True

    def open(self, case_folder: Path) -> str:
        """Read the image as colour ids and as a mask."""
        (path,) = case_folder.iterdir()
        processor = ImageGPTImageProcessor(ColorPalette.grey(16), size=8)
        ids = np.asarray(processor([path])["input_ids"])
        assert ids.shape == (1, 64)
        return hashlib.sha256(ids.tobytes() + read_mask(path, 8, 8).tobytes()).hexdigest()


def _pictures() -> dict[str, bytes]:
    """File name -> content of the undamaged files."""
    made: dict[str, bytes] = {}
    for kind in (
        "BMP",
        "DDS",
        "DIB",
        "GIF",
        "ICNS",
        "ICO",
        "JPEG2000",
        "PCX",
        "PPM",
        "QOI",
        "SGI",
        "TGA",
        "XBM",
        "AVIF",
    ):
        picture = _noise(_SIDES.get(kind, 24)).convert(_MODES.get(kind, "RGB"))
        made[f"plain.{kind.lower()}"] = _saved(picture, kind)
    rgb = _noise(40)
    exif, profile = Image.Exif(), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif[0x0112] = 6
    detail = {"exif": exif, "icc_profile": profile}
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 50)
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="3"/>')
    made["full.png"] = _saved(rgb, "PNG", pnginfo=text, **detail)
    for mode in ("1", "L", "LA", "P", "RGBA"):
        made[f"{mode.lower()}.png"] = _saved(rgb.convert(mode), "PNG")
    made["key.png"] = _saved(rgb, "PNG", transparency=(1, 2, 3))
    deep = np.random.default_rng(0).integers(0, 65_536, (24, 24), np.uint16)
    made["deep.png"] = _saved(Image.fromarray(deep), "PNG")
    made["full.jpeg"] = _saved(rgb, "JPEG", **detail)
    made["progressive.jpeg"] = _saved(rgb, "JPEG", progressive=True)
    made["cmyk.jpeg"] = _saved(rgb.convert("CMYK"), "JPEG")
    made["lossless.webp"] = _saved(rgb.convert("RGBA"), "WEBP", lossless=True, **detail)
    made["lossy.webp"] = _saved(rgb, "WEBP")
    for packing in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg"):
        made[f"{packing}.tiff"] = _saved(rgb, "TIFF", compression=packing)
    made["float.tiff"] = _saved(Image.fromarray((deep / 65_536).astype(np.float32)), "TIFF")
    frames = [_noise(12, seed).convert("P") for seed in range(3)]
    made["moving.gif"] = _saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    return made


def _noise(side: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


def _saved(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
