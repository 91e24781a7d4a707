"""PNG files with metadata about how the image was generated."""

import io
from collections.abc import Mapping
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imagegpt.common.text import printable


def encode_png(image: Image.Image, metadata: Mapping[str, Any], version: str) -> bytes:
    """Encode an image as PNG; the same image and metadata give the same bytes.

    Args:
        image: of a mode that PNG supports.
        metadata: model, seed, rules and such, written as text chunks.
        version: of this package, for the "Software" chunk; an argument because this module may not import it.
    """
    info = PngInfo()
    info.add_text("Software", f"imagegpt {version}")
    info.add_text("Comment", "created with iGPT")
    for key, value in metadata.items():
        info.add_itxt(key, printable(str(value)))  # a file name may not be valid UTF-8
    content = io.BytesIO()
    image.save(content, format="PNG", pnginfo=info)
    return content.getvalue()
