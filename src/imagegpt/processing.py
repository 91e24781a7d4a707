"""Images in, ids out, and back: the processor that transformers calls an image processor.

It reads and writes transformers' `preprocessor_config.json`, so that a folder saved by either library loads in the
other. What is unusual: an image stays 8-bit all the way to the palette's lookup table; there is no float round trip.

Axis letters: B images, T pixels in raster order, H height, W width, V palette colours.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from numpy.typing import ArrayLike
from PIL import Image, ImageColor
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

from imagegpt import ranges
from imagegpt.files import atomic_write
from imagegpt.images import read_image
from imagegpt.palette import ColorPalette

logger = logging.getLogger(__name__)

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor

RESIZE_MODES = ("crop", "squash")

# What transformers' configurations may also say, and the only values under which we do the same as it does.
_FIXED: dict[str, tuple[Any, ...]] = {
    "rescale_factor": (None, 1 / 255),
    "image_mean": (None, 0.5, [0.5, 0.5, 0.5], (0.5, 0.5, 0.5)),
    "image_std": (None, 0.5, [0.5, 0.5, 0.5], (0.5, 0.5, 0.5)),
    "do_center_crop": (None, False),
    "do_pad": (None, False),
}
# Its notes to itself and to its other backend: of no consequence here.
_IGNORED = {
    "image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "crop_size", "pad_size",
    "default_to_square", "do_convert_rgb", "data_format", "input_data_format", "device", "return_tensors",
    "disable_grouping", "image_seq_length",
}  # fmt: skip
# What its loaders and pipelines pass along to everything they load.
_LOADER_OPTIONS = {
    "backend", "code_revision", "device_map", "dtype", "torch_dtype", "trust_remote_code", "use_fast", "_commit_hash",
}  # fmt: skip


class ImageGPTImageProcessorKwargs(ImagesKwargs, total=False):
    """The options `from_pretrained` lets the caller override."""

    clusters: Any
    palette: Any
    do_color_quantize: bool
    resize_mode: str
    background: Any


class ImageGPTImageProcessor(BaseImageProcessor):
    """Turns images into ids in raster order, and ids into images.

    Where transformers 5.23's processor differs (its behaviour, then ours):
    - grey arrays, "L" and RGBA images: three different errors; every Pillow mode and array below works;
    - default size 256x256, which no ImageGPT accepts; 32x32;
    - the aspect ratio is squashed; "crop", the paper's way (shorter side to size, then the centre), unless the
      configuration was written by transformers, or `resize_mode="squash"`;
    - EXIF orientation ignored; applied;
    - no way back; `decode`.
    On RGB images with "squash" the ids are the same. (All 2^24 colours agree for OpenAI's palette as loaded from a
    configuration. A pixel equally far from two 8-bit colours takes the lower id here, and there whichever the
    rounding favours.)

    Images may be paths, Pillow images of any mode, numpy arrays or torch tensors: one, a list of any mixture, or one
    batch array (B, H, W, C) or (B, C, H, W). Arrays are (H, W) or have C = 1, 3 or 4 channels, last or first; where
    both readings are possible the last axis is the channels, and a three-axis array is one image, never a batch of
    grey ones. Array values: uint8, bool, uint16 (full range 65,535) or floats in [0, 1]. Pillow's 32-bit modes are read
    as "I" 0 to 65,535, as its 16-bit PNG files, and "F" in [0, 1]. Transparent images are laid on `background`.

    Args:
        palette: the colours; or give `clusters`, its float (V, 3) in [-1, 1], as configurations hold it.
        clusters: see `palette`; give only one of them. Without either only `do_color_quantize=False` works.
        size: of the images in pixels, an int (square), (height, width) or {"height": ..., "width": ...}.
        resize_mode: "crop" keeps the aspect ratio and cuts the longer side; "squash" keeps everything and distorts.
        resample: a Pillow filter (2, bilinear, is transformers' default).
        background: behind transparent pixels: (r, g, b) in 0..255 or a name that Pillow knows.
        do_resize: False leaves images as they are; those of one call must then agree in size.
        do_color_quantize: False gives `pixel_values`, float32 (B, 3, H, W), instead of `input_ids`.
        do_rescale: False leaves `pixel_values` in 0..255; not allowed with `do_color_quantize` or `do_normalize`.
        do_normalize: False leaves `pixel_values` in 0..1; not allowed with `do_color_quantize`. Both True: [-1, 1].
        kwargs: other keys of transformers' configuration, accepted where they change nothing.
    Raises: ValueError for unknown or contradictory options.
    """

    model_input_names = ["input_ids"]  # noqa: RUF012 - transformers wants a plain list
    valid_kwargs = ImageGPTImageProcessorKwargs

    def __init__(
        self,
        palette: ColorPalette | None = None,
        *,
        clusters: ArrayLike | None = None,
        size: int | np.integer | Sequence[int] | dict[str, int] = 32,
        resize_mode: str = "crop",
        resample: int = Image.Resampling.BILINEAR,
        background: str | Sequence[int] = (255, 255, 255),
        do_resize: bool = True,
        do_color_quantize: bool = True,
        do_rescale: bool = True,
        do_normalize: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        _check_foreign_options(kwargs)
        if palette is not None and clusters is not None:
            raise ValueError("both palette and clusters were given: give one of them")
        if clusters is not None:
            palette = ColorPalette(clusters)
        if palette is not None and not isinstance(palette, ColorPalette):
            raise ValueError(f"palette is a {type(palette).__name__}: give a ColorPalette, or the colours as clusters")
        if resize_mode not in RESIZE_MODES:
            raise ValueError(f"resize_mode is {resize_mode!r}: choose one of {', '.join(RESIZE_MODES)}")
        flags = {"do_resize": do_resize, "do_color_quantize": do_color_quantize, "do_rescale": do_rescale}
        for name, value in {**flags, "do_normalize": do_normalize}.items():
            if value not in (True, False):
                raise ValueError(f"{name} is {value!r}: it must be True or False")
        if resample not in set(Image.Resampling):
            raise ValueError(f"resample is {resample!r}: choose one of Pillow's filters, 0 to 5")
        if do_color_quantize and not (do_rescale and do_normalize):
            off = "do_rescale" if not do_rescale else "do_normalize"
            raise ValueError(
                f"{off} is False and do_color_quantize is True: the palette is on the normalised scale, "
                "set do_color_quantize to False for raw values"
            )
        if do_normalize and not do_rescale:
            raise ValueError("do_rescale is False and do_normalize is True: normalise rescaled values, or neither")
        self._palette = palette
        self.size = _size_dict(size)
        self.resize_mode = resize_mode
        self.resample = int(resample)
        self.background = _color(background)
        self.do_resize = do_resize
        self.do_color_quantize = do_color_quantize
        self.do_rescale = do_rescale
        self.do_normalize = do_normalize

    @property
    def palette(self) -> ColorPalette | None:
        """The colours, or None if none were given."""
        return self._palette

    @property
    def clusters(self) -> Float32[np.ndarray, "v 3"] | None:
        """The palette on the scale -1..1, under transformers' name."""
        return None if self._palette is None else self._palette.clusters

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from the contents of a `preprocessor_config.json`; without `resize_mode` there, it is "squash".

        Args:
            image_processor_dict: the configuration, of either library.
            kwargs: options that replace those of the configuration. Others are ignored, with a
                logged warning, or handed back if `return_unused_kwargs` is among them.
        Raises: ValueError for unknown or contradictory options in the configuration.
        """
        return_unused = kwargs.pop("return_unused_kwargs", False)
        options = {key: kwargs.pop(key) for key in list(kwargs) if key in cls.valid_kwargs.__annotations__}
        config = {"resize_mode": "squash", **image_processor_dict}
        if "palette" in options:
            config.pop("clusters", None)
        processor = cls(**{**config, **options})
        if return_unused:
            return processor, kwargs
        unknown = sorted(set(kwargs) - _LOADER_OPTIONS)
        if unknown:
            logger.warning("options that are not the image processor's were ignored: %s", ", ".join(unknown))
        return processor

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> "ImageGPTImageProcessor":
        """Build from a `preprocessor_config.json` by its path."""
        config, _ = cls.get_image_processor_dict(json_file, local_files_only=True)
        return cls.from_dict(config)

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Write `preprocessor_config.json` into a folder, made if need be; transformers' base class has the options.

        Raises: OSError if it cannot be written; nothing is left half written.
        """
        folder = os.fspath(save_directory)
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"{folder} cannot be made a folder ({error.strerror}): choose another place") from error
        return super().save_pretrained(folder, push_to_hub, **kwargs)

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write the configuration to a file, which appears whole or not at all.

        Raises: OSError if it cannot be written.
        """
        atomic_write(Path(json_file_path), self.to_json_string().encode(), "the processor's configuration")

    def to_dict(self) -> dict[str, Any]:
        """The contents of `preprocessor_config.json`: transformers' keys, and our `resize_mode` and `background`."""
        return {
            "image_processor_type": "ImageGPTImageProcessor",
            "clusters": None if self._palette is None else self._palette.clusters.tolist(),
            "size": dict(self.size),
            "resize_mode": self.resize_mode,
            "resample": self.resample,
            "background": list(self.background),
            "do_resize": self.do_resize,
            "do_color_quantize": self.do_color_quantize,
            "do_rescale": self.do_rescale,
            "rescale_factor": 1 / 255,
            "do_normalize": self.do_normalize,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        }

    def __repr__(self) -> str:
        shown = {key: value for key, value in self.to_dict().items() if key not in ("clusters", "image_processor_type")}
        options = ", ".join(f"{key}={value!r}" for key, value in shown.items())
        return f"{type(self).__name__}({self._palette}, {options})"

    def preprocess(  # pyright: ignore[reportIncompatibleMethodOverride] - our options are set once, not per call
        self, images: ImageLike | Sequence[ImageLike], return_tensors: str | None = None
    ) -> BatchFeature:
        """Prepare images for the model; calling the processor does the same.

        Args:
            images: one image or several, see the class.
            return_tensors: "pt" for torch tensors; "np" or None for numpy arrays.
        Returns: `input_ids`, int64 (B, T), T = H * W; or `pixel_values`, float32 (B, 3, H, W).
        Raises: FileNotFoundError for a missing file; ValueError, naming the image's place in the list, for one that
            cannot be read or understood, for an empty list, or if there is no palette.
        """
        if return_tensors not in (None, "np", "pt"):
            raise ValueError(f'return_tensors is {return_tensors!r}: choose "pt", "np" or None')
        if self.do_color_quantize and self._palette is None:
            raise ValueError("this processor has no palette: give it one, or set do_color_quantize to False")
        rgb = self.to_rgb(images)
        if self._palette is not None and self.do_color_quantize:
            data = {"input_ids": self._palette.encode(rgb).reshape(len(rgb), -1)}
        else:
            data = {"pixel_values": self._pixel_values(rgb)}
        return BatchFeature(data, tensor_type=return_tensors or "np")

    def to_rgb(self, images: ImageLike | Sequence[ImageLike]) -> UInt8[np.ndarray, "b h w 3"]:
        """The images as the palette sees them: read, laid on the background, oriented, resized.

        Raises: as `preprocess`.
        """
        if self._is_ready(images):
            return images
        several = _as_list(images)
        if not several:
            raise ValueError("the list of images is empty: give at least one image")
        arrays = []
        for index, image in enumerate(several):
            try:
                arrays.append(self._resized(read_image(image, self.background)))
            except (ValueError, FileNotFoundError) as error:
                place = f"image {index} of {len(several)}: " if len(several) > 1 else ""
                kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
                raise kind(f"{place}{error}") from error
        if len({array.shape for array in arrays}) > 1:
            sizes = sorted({array.shape[:2] for array in arrays})
            raise ValueError(
                f"do_resize is False and the images differ in height and width ({', '.join(map(str, sizes))}): "
                "give images of one size, or set do_resize to True"
            )
        return np.stack(arrays)

    def decode(
        self, ids: ArrayLike | torch.Tensor, size: int | np.integer | Sequence[int] | dict[str, int] | None = None
    ) -> list[Image.Image]:
        """Turn ids back into images.

        Args:
            ids: (B, T) or, for one image, (T,); a start token (id V) in front of H * W pixels is dropped.
            size: of the images, in any of the forms of the constructor's; None means the processor's.
        Returns: B images, of mode "L" if the palette is grey and "RGB" otherwise.
        Raises: ValueError if there is no palette, T is not H * W, or an id is no colour.
        """
        if self._palette is None:
            raise ValueError("this processor has no palette: give it one to decode ids")
        target = self.size if size is None else _size_dict(size)
        height, width = target["height"], target["width"]
        rows = ids.detach().cpu().numpy() if isinstance(ids, torch.Tensor) else _id_array(ids)
        if rows.ndim not in (1, 2):
            raise ValueError(f"ids have shape {rows.shape}: they must be (images, pixels) or (pixels,)")
        rows = np.atleast_2d(rows)
        if rows.shape[1] == height * width + 1 and (rows[:, 0] == self._palette.num_colors).all():
            rows = rows[:, 1:]
        if rows.shape[1] != height * width:
            raise ValueError(
                f"each image has {rows.shape[1]} ids, {height}x{width} pixels are {height * width}: "
                "give that many, or the size they have"
            )
        rgb = self._palette.decode(rows).reshape(len(rows), height, width, 3)
        return [Image.fromarray(image[..., 0] if self._palette.is_grey else image) for image in rgb]

    def _is_ready(self, images: Any) -> TypeGuard[np.ndarray]:
        """Whether this is a batch that needs nothing done: numpy, uint8, (B, H, W, 3) of the right size."""
        wanted = (self.size["height"], self.size["width"], 3)
        return (
            isinstance(images, np.ndarray)
            and images.dtype == np.uint8
            and images.ndim == 4
            and images.shape[1:] == wanted
            and len(images) > 0
        )

    def _pixel_values(self, rgb: UInt8[np.ndarray, "b h w 3"]) -> Float32[np.ndarray, "b 3 h w"]:
        values = np.ascontiguousarray(rgb.transpose(0, 3, 1, 2), dtype=np.float32)
        if self.do_rescale:
            values /= 255
        if self.do_normalize:
            values = 2 * values - 1
        return values

    def _resized(self, image: Image.Image | UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
        """Bring to `size`, unless it is there already or `do_resize` is off."""
        height, width = self.size["height"], self.size["width"]
        shape = image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)
        if not self.do_resize or shape == (height, width):
            return np.asarray(image)
        picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        if self.resize_mode == "squash":
            return np.asarray(picture.resize((width, height), self.resample))
        scale = max(height / picture.height, width / picture.width)
        scaled = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
        left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
        return np.asarray(picture.resize(scaled, self.resample).crop((left, top, left + width, top + height)))


def _as_list(images: Any) -> list[Any]:
    if isinstance(images, list | tuple):
        return list(images)
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
        return list(images)
    return [images]


def _size_dict(size: Any) -> dict[str, int]:
    """An int, (height, width) or a mapping of both as {"height": ..., "width": ...}."""
    sides = size
    if isinstance(size, int | np.integer):
        sides = (size, size)
    elif hasattr(size, "keys") and set(size.keys()) == {"height", "width"}:
        sides = (size["height"], size["width"])
    if not (isinstance(sides, list | tuple) and len(sides) == 2 and all(map(ranges.SIDE.holds, sides))):
        raise ValueError(
            f"size is {size!r}: each side must be {ranges.SIDE}, give them as 32, (32, 48) or "
            '{"height": 32, "width": 48}'
        )
    return {"height": int(sides[0]), "width": int(sides[1])}


def _color(color: Any) -> tuple[int, int, int]:
    try:
        rgb = ImageColor.getrgb(color) if isinstance(color, str) else tuple(int(value) for value in color)
    except (TypeError, ValueError):
        rgb = ()
    if len(rgb) != 3 or not all(0 <= value <= 255 for value in rgb):
        raise ValueError(f'background is {color!r}: give (red, green, blue), 0 to 255, or a name such as "white"')
    return rgb[0], rgb[1], rgb[2]


def _id_array(ids: Any) -> np.ndarray:
    try:
        return np.asarray(ids)
    except ValueError as error:
        raise ValueError("the rows of ids differ in length: every image must have the same number") from error


def _check_foreign_options(options: dict[str, Any]) -> None:
    for key, value in options.items():
        if key in _FIXED and value not in _FIXED[key]:
            raise ValueError(f"{key} is {value!r}: this processor only takes {_FIXED[key][-1]!r}, leave it out")
        if key not in _FIXED and key not in _IGNORED:
            raise ValueError(f"there is no option {key!r}: see the arguments of ImageGPTImageProcessor")
