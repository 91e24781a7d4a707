"""`ProcessingOptions`: the options of the image processor and their validation.

The constructor, `preprocessor_config.json` and each call accept the same options; all are validated here.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageColor
from transformers.processing_utils import ImagesKwargs

from imagegpt.common import ranges

RESIZE_MODES = ("crop", "squash")
INPUT_FORMATS = ("channels_first", "channels_last", "none")
OUTPUT_FORMATS = ("channels_first", "channels_last")
TENSOR_TYPES = ("pt", "np")

# Options of transformers' configurations that we do not have, and the values that match our behaviour.
_FIXED: dict[str, tuple[Any, ...]] = {"do_center_crop": (None, False), "do_pad": (None, False)}
# Keys of transformers' configurations that have no effect here.
_IGNORED = {
    "image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "crop_size", "pad_size",
    "default_to_square", "disable_grouping", "image_seq_length",
}  # fmt: skip


class ImageGPTImageProcessorKwargs(ImagesKwargs, total=False):
    """Options that a call or `from_pretrained` may override, in addition to those of every image processor."""

    clusters: Any
    palette: Any
    do_color_quantize: bool
    resize_mode: str
    background: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessingOptions:
    """All options of the processor except the palette, validated and normalised; see `ImageGPTImageProcessor`.

    Raises: ValueError for invalid values and contradictions.
    """

    size: Any = 32  # becomes {"height": ..., "width": ...}
    resize_mode: str = "crop"
    resample: int = Image.Resampling.BILINEAR
    background: Any = (255, 255, 255)  # becomes (red, green, blue), 0 to 255
    do_convert_rgb: bool = True
    do_resize: bool = True
    do_color_quantize: bool = True
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: Any = 0.5  # becomes three floats
    image_std: Any = 0.5  # likewise
    input_data_format: str | None = None
    data_format: str = "channels_first"
    device: str | torch.device | None = None
    return_tensors: str | None = None

    def __post_init__(self) -> None:
        for name in ("do_convert_rgb", "do_resize", "do_color_quantize", "do_rescale", "do_normalize"):
            value = getattr(self, name)
            if not isinstance(value, bool | np.bool_ | int) or value not in (True, False):
                raise ValueError(f"{name} is {value!r:.80}: it must be True or False")
            self._set(name, bool(value))
        _check_choice("resize_mode", self.resize_mode, RESIZE_MODES)
        _check_choice("data_format", self.data_format, OUTPUT_FORMATS)
        if self.resample not in list(Image.Resampling):
            raise ValueError(f"resample is {self.resample!r:.80}: choose one of Pillow's filters, 0 to 5")
        if self.input_data_format is not None:
            _check_choice("input_data_format", self.input_data_format, INPUT_FORMATS)
        if self.return_tensors is not None:
            _check_choice("return_tensors", self.return_tensors, TENSOR_TYPES)
        self._set("size", get_size_dict(self.size))
        self._set("resample", int(self.resample))
        self._set("background", _color(self.background))
        self._set("rescale_factor", ranges.RESCALE_FACTOR.check("rescale_factor", self.rescale_factor))
        self._set("image_mean", _three_numbers("image_mean", self.image_mean, ranges.PIXEL_MEAN))
        self._set("image_std", _three_numbers("image_std", self.image_std, ranges.PIXEL_STD))
        self._check_scale()
        self._check_device()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_scale(self) -> None:
        if self.do_color_quantize and not (self.do_rescale and self.do_normalize):
            off = "do_rescale" if not self.do_rescale else "do_normalize"
            raise ValueError(
                f"{off} is False and do_color_quantize is True: the palette is on the normalised scale, "
                "set do_color_quantize to False for raw values"
            )
        if self.do_normalize and not self.do_rescale:
            raise ValueError("do_rescale is False and do_normalize is True: normalise rescaled values, or neither")
        if not self.do_color_quantize:
            return
        for name in ("image_mean", "image_std"):
            if getattr(self, name) != (0.5, 0.5, 0.5):
                raise _palette_scale_error(name, getattr(self, name), "(0.5, 0.5, 0.5)")
        if not math.isclose(self.rescale_factor, 1 / 255, rel_tol=1e-6):
            raise _palette_scale_error("rescale_factor", self.rescale_factor, "1/255")

    def _check_device(self) -> None:
        if self.device is None:
            return
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, TypeError, NotImplementedError, ValueError, OverflowError):
            raise ValueError(
                f"there is no device {str(self.device)!r:.80} here: give cpu, or a GPU of this machine"
            ) from None
        if self.return_tensors != "pt" and device.type != "cpu":
            raise ValueError(
                f"device is {str(device)!r} and return_tensors is {self.return_tensors!r}: arrays are on the CPU, "
                'set return_tensors to "pt"'
            )


OPTION_NAMES = tuple(field.name for field in dataclasses.fields(ProcessingOptions))


def check_other_options(options: dict[str, Any]) -> None:
    """Check that options we do not have are transformers', with values that match our behaviour.

    Raises: ValueError, naming the option.
    """
    for key, value in options.items():
        if key in _FIXED and value not in _FIXED[key]:
            raise ValueError(f"{key} is {value!r:.80}: this processor only takes {_FIXED[key][-1]!r}, leave it out")
        if key not in _FIXED and key not in _IGNORED:
            raise ValueError(f"there is no option {key!r:.80}: see the arguments of ImageGPTImageProcessor")


def get_size_dict(size: Any) -> dict[str, int]:
    """Convert an int, (height, width) or a mapping to {"height": ..., "width": ...}.

    Raises: ValueError unless both are in `ranges.IMAGE_SIDE`.
    """
    sides = size
    if isinstance(size, int | np.integer):
        sides = (size, size)
    elif hasattr(size, "get"):  # a dict, or transformers' SizeDict
        named = dict(size)
        sides = (named["height"], named["width"]) if set(named) == {"height", "width"} else ()
    if not (isinstance(sides, list | tuple) and len(sides) == 2 and all(side in ranges.IMAGE_SIDE for side in sides)):
        raise ValueError(
            f"size is {size!r:.80}: each side must be {ranges.IMAGE_SIDE}, give them as 32, (32, 48) or "
            '{"height": 32, "width": 48}'
        )
    return {"height": int(sides[0]), "width": int(sides[1])}


def _palette_scale_error(name: str, value: Any, required: str) -> ValueError:
    return ValueError(
        f"{name} is {value} and do_color_quantize is True: the palette requires {required}, leave it out, or set "
        "do_color_quantize to False"
    )


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r:.80}: choose one of {', '.join(choices)}")


def _color(color: Any) -> tuple[int, int, int]:
    try:
        rgb = ImageColor.getrgb(color) if isinstance(color, str) else tuple(int(value) for value in color)
    except (TypeError, ValueError, OverflowError):
        rgb = ()
    if len(rgb) != 3 or not all(0 <= value <= 255 for value in rgb):
        raise ValueError(f'background is {color!r:.80}: give (red, green, blue), 0 to 255, or a name such as "white"')
    return rgb[0], rgb[1], rgb[2]


def _three_numbers(name: str, value: Any, allowed: ranges.FloatRange) -> tuple[float, float, float]:
    values = [value] * 3 if np.ndim(value) == 0 else list(value)
    if len(values) != 3:
        raise ValueError(f"{name} is {value!r:.80}: give one number, or three, one per colour")
    red, green, blue = (allowed.check(name, each) for each in values)
    return red, green, blue
