"""Images as PNG files that say how they were made."""

import io
from collections.abc import Mapping
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imagegpt.common.text import printable


def png_bytes(image: "Image.Image", facts: Mapping[str, Any], version: str) -> bytes:
    """An image as a PNG, with facts in its metadata, beside who made it; the same image and facts give the same bytes.

    Args:
        image: of a mode that PNG knows.
        facts: how it was made; model, seed, rules and such.
        version: of this package, which this file may not import.
    """
    info = PngInfo()
    info.add_text("Software", f"imagegpt {version}")
    info.add_text("Comment", "created with iGPT")
    for key, value in facts.items():
        info.add_itxt(key, printable(str(value)))  # a name may be no UTF-8
    content = io.BytesIO()
    image.save(content, format="PNG", pnginfo=info)
    return content.getvalue()
