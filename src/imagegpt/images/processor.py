"""Images in, ids out, and back: the processor that transformers calls an image processor.

It reads and writes transformers' `preprocessor_config.json`, so that a folder saved by either library loads in the
other. What is unusual: an image stays 8-bit all the way to the palette's lookup table; there is no float round trip.

Axis letters: B images, T pixels in raster order, H height, W width, V palette colours.
"""

import copy
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from numpy.typing import ArrayLike
from PIL import Image
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from imagegpt.files.atomic import atomic_write
from imagegpt.files.schemas import naming
from imagegpt.files.untrusted import check_processor_files
from imagegpt.images.batches import id_rows, pixel_values, read_batch
from imagegpt.images.palette import ColorPalette
from imagegpt.images.processor_options import (
    OPTION_NAMES,
    ImageGPTImageProcessorKwargs,
    ProcessingOptions,
    check_foreign_options,
    size_dict,
)
from imagegpt.images.reading import ImageLike

logger = logging.getLogger(__name__)

# What transformers' loaders and pipelines pass along to everything they load.
_LOADER_OPTIONS = {
    "backend", "code_revision", "device_map", "dtype", "torch_dtype", "trust_remote_code", "use_fast", "_commit_hash",
}  # fmt: skip


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
    batch array (B, H, W, C), (B, C, H, W) or, grey, (B, H, W). Array values: uint8, bool, uint16 (full range 65,535) or
    floats in [0, 1]. Pillow's 32-bit modes are read as "I" 0 to 65,535, as its 16-bit PNG files, and "F" in [0, 1].
    Transparent images are laid on `background`.

    Which axis of an array holds C = 1, 3 or 4 channels: the last, if it is that long; else the first; and an array of
    three axes that has no such axis is a batch of grey images. Where that is not what is meant, `input_data_format`
    says it: three grey images (3, H, W) are read with "none", an image of 4 columns (3, H, 4) with "channels_first".

    Every option below can also be given to `from_pretrained`, or to one call; None there means the processor's own.

    Args:
        palette: the colours; or give `clusters`, its float (V, 3) in [-1, 1], as configurations hold it.
        clusters: see `palette`; give only one of them. Without either only `do_color_quantize=False` works.
        options: the fields of `ProcessingOptions`, which may be
            size: of the images in pixels, an int (square), (height, width) or {"height": ..., "width": ...}.
            resize_mode: "crop" keeps the aspect ratio and cuts the longer side; "squash" keeps everything and distorts.
            resample: a Pillow filter (2, bilinear, is transformers' default).
            background: behind transparent pixels: (r, g, b) in 0..255 or a name that Pillow knows.
            do_convert_rgb: False refuses images that are not RGB.
            do_resize: False leaves images as they are; those of one call must then agree in size.
            do_color_quantize: False gives `pixel_values`, float32 (B, 3, H, W), instead of `input_ids`.
            do_rescale: False leaves `pixel_values` in 0..255; not with `do_color_quantize` or `do_normalize`.
            rescale_factor: what `pixel_values` are multiplied by; with `do_color_quantize` only 1/255, the default.
            do_normalize: False leaves `pixel_values` in 0..1; not allowed with `do_color_quantize`.
            image_mean, image_std: one number or three; (value - mean) / std is what `do_normalize` does. With
                `do_color_quantize` only 0.5, the default, which makes [-1, 1] of [0, 1].
            input_data_format: "channels_last", "channels_first" or "none", see above.
            data_format: of `pixel_values`: "channels_first", or "channels_last" for (B, H, W, 3).
            return_tensors: "pt" for torch tensors; "np" or None for numpy arrays.
            device: where torch tensors are put.
            Other keys of transformers' configuration are accepted where they change nothing.
    Raises: ValueError for unknown or contradictory options.
    """

    model_input_names = ["input_ids"]  # noqa: RUF012 - transformers wants a plain list
    valid_kwargs = ImageGPTImageProcessorKwargs

    size: dict[str, int]
    resize_mode: str
    resample: int
    background: tuple[int, int, int]
    do_convert_rgb: bool
    do_resize: bool
    do_color_quantize: bool
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    input_data_format: str | None
    data_format: str
    return_tensors: str | None
    device: str | torch.device | None

    def __init__(
        self, palette: ColorPalette | None = None, *, clusters: ArrayLike | None = None, **options: Any
    ) -> None:
        super().__init__()
        self._palette = _palette_of(palette, clusters)
        own = {name: options.pop(name) for name in OPTION_NAMES if name in options}
        check_foreign_options(options)
        self._checked = ProcessingOptions(**{name: value for name, value in own.items() if value is not None})
        for name, value in vars(self._checked).items():
            setattr(self, name, copy.copy(value))

    @property
    def palette(self) -> ColorPalette | None:
        """The colours, or None if none were given."""
        return self._palette

    @property
    def clusters(self) -> Float32[np.ndarray, "v 3"] | None:
        """The palette on the scale -1..1, under transformers' name."""
        return None if self._palette is None else self._palette.clusters

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers.

        Raises: ValueError, in one sentence that names the file, if it is damaged.
        """
        check_processor_files(pretrained_model_name_or_path, kwargs)
        return super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """As in transformers.

        Raises: ValueError, which begins with the folder or name, for options that make no sense.
        """
        name = os.fspath(pretrained_model_name_or_path)
        with naming(name):
            return super().from_pretrained(name, *args, **kwargs)

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
        return cls.from_pretrained(json_file, local_files_only=True)

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
        options = {name: getattr(self, name) for name in OPTION_NAMES}
        lists = {name: list(options[name]) for name in ("background", "image_mean", "image_std")}
        device = {"device": None if self.device is None else str(self.device)}
        return {
            "image_processor_type": ImageGPTImageProcessor.__name__,
            "clusters": None if self._palette is None else self._palette.clusters.tolist(),
            **{k: v for k, v in {**options, **lists, **device, "size": dict(self.size)}.items() if v is not None},
        }

    def __repr__(self) -> str:
        shown = {key: value for key, value in self.to_dict().items() if key not in ("clusters", "image_processor_type")}
        options = ", ".join(f"{key}={value!r}" for key, value in shown.items())
        return f"{type(self).__name__}({self._palette}, {options})"

    def preprocess(  # pyright: ignore[reportIncompatibleMethodOverride] - it takes more kinds of images
        self, images: ImageLike | Sequence[Any], **options: Unpack[ImageGPTImageProcessorKwargs]
    ) -> BatchFeature:
        """Prepare images for the model; calling the processor does the same.

        Args:
            images: one image or several, see the class.
            **options: those of the class, for this call alone.
        Returns: `input_ids`, int64 (B, T), T = H * W; or `pixel_values`, float32 (B, 3, H, W).
        Raises: FileNotFoundError for a missing file; ValueError, naming the image's place in the list, for one that
            cannot be read or understood, for an empty list, for options that are not allowed, or if there is no
            palette.
        """
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        palette = _palette_of(given.pop("palette", None), given.pop("clusters", None)) or self._palette
        used = self._options(given)
        if used.do_color_quantize and palette is None:
            raise ValueError("this processor has no palette: give it one, or set do_color_quantize to False")
        rgb = read_batch(images, used)
        if palette is not None and used.do_color_quantize:
            data = {"input_ids": palette.encode(rgb).reshape(len(rgb), -1)}
        else:
            data = {"pixel_values": pixel_values(rgb, used)}
        batch = BatchFeature(data, tensor_type=used.return_tensors or "np")
        if used.device is not None and used.return_tensors == "pt":
            batch.to(used.device)
        return batch

    def to_rgb(self, images: ImageLike | Sequence[Any]) -> UInt8[np.ndarray, "b h w 3"]:
        """The images as the palette sees them: read, laid on the background, oriented, resized.

        Raises: as `preprocess`.
        """
        return read_batch(images, self._options({}))

    def _options(self, given: dict[str, Any]) -> ProcessingOptions:
        """The processor's options and those of one call, checked together."""
        own = {name: getattr(self, name) for name in OPTION_NAMES}  # attributes, which may have been changed
        if not given and own == vars(self._checked):
            return self._checked
        own |= {name: given.pop(name) for name in OPTION_NAMES if name in given}
        check_foreign_options(given)
        return ProcessingOptions(**own)

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
        target = self.size if size is None else size_dict(size)
        height, width = target["height"], target["width"]
        rows = id_rows(ids, height, width, self._palette.num_colors)
        rgb = self._palette.decode(rows).reshape(len(rows), height, width, 3)
        return [Image.fromarray(image[..., 0] if self._palette.is_grey else image) for image in rgb]


class ImageGPTFeatureExtractor(ImageGPTImageProcessor):
    """The processor under the name that configurations of transformers 4 have for it; what it saves has the new one."""


class ImageGPTImageProcessorPil(ImageGPTImageProcessor):
    """The processor under the name of transformers' own for Pillow, which folders and older releases may look for."""


def _palette_of(palette: Any, clusters: Any) -> ColorPalette | None:
    if palette is not None and clusters is not None:
        raise ValueError("both palette and clusters were given: give one of them")
    if clusters is not None:
        return ColorPalette(clusters)
    if palette is not None and not isinstance(palette, ColorPalette):
        raise ValueError(f"palette is a {type(palette).__name__}: give a ColorPalette, or the colours as clusters")
    return palette
