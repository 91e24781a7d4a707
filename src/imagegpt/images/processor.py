"""`ImageGPTImageProcessor`: images to ids and back, as an image processor of transformers.

It reads and writes transformers' `preprocessor_config.json`, so that a folder saved by either library loads in the
other. Unusual: images stay 8-bit all the way to the palette's lookup table, without a round trip through floats.

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
from imagegpt.files.schemas import prefix_errors
from imagegpt.files.untrusted import check_processor_files
from imagegpt.images.batches import compute_pixel_values, read_batch, to_id_array
from imagegpt.images.palette import ColorPalette
from imagegpt.images.processor_options import (
    OPTION_NAMES,
    ImageGPTImageProcessorKwargs,
    ProcessingOptions,
    check_other_options,
    get_size_dict,
)
from imagegpt.images.reading import ImageLike

logger = logging.getLogger(__name__)

# Arguments that transformers' loaders and pipelines pass to everything they load.
_LOADER_OPTIONS = {
    "backend", "code_revision", "device_map", "dtype", "torch_dtype", "trust_remote_code", "use_fast", "_commit_hash",
}  # fmt: skip


class ImageGPTImageProcessor(BaseImageProcessor):
    """Converts images to ids in raster order, and ids to images.

    Differences from transformers 5.23's processor (its behaviour -> ours):
    - grey arrays, "L" and RGBA images: three different errors -> every Pillow mode and array below works;
    - default size: 256x256, which no ImageGPT accepts -> 32x32;
    - aspect ratio: squashed -> "crop", as in the paper (resize the shorter side, then crop the centre), unless the
      configuration was written by transformers or `resize_mode="squash"` is set;
    - EXIF orientation: ignored -> applied;
    - ids to images: not possible -> `decode`.
    On RGB images with "squash" the ids are equal. (All 2^24 colours agree for OpenAI's palette loaded from a
    configuration. If a pixel is equally far from two 8-bit colours, the lower id is used here; there it depends on
    rounding.)

    Images may be paths, Pillow images of any mode, numpy arrays or torch tensors: one, a list of any mixture, or one
    batch array (B, H, W, C), (B, C, H, W) or, grey, (B, H, W). Array values: uint8, bool, uint16 (full range 65,535) or
    floats in [0, 1]. Pillow's 32-bit modes are read as "I" 0 to 65,535, like its 16-bit PNG files, and "F" in [0, 1].
    Transparent images are composited onto `background`.

    The channel axis of an array, of length 1, 3 or 4, is the last if that has such a length, otherwise the first. A 3-D
    array without such an axis is a batch of grey images. Override this with `input_data_format`: "none" reads (3, H, W)
    as three grey images, "channels_first" reads (3, H, 4) as an image with 4 columns.

    Every option below can also be passed to `from_pretrained` or to a call, where None means the processor's value.

    Args:
        palette: the colours; alternatively `clusters`, floats (V, 3) in [-1, 1], as in configurations.
        clusters: see `palette`; give only one of them. Without either, only `do_color_quantize=False` works.
        options: the fields of `ProcessingOptions`:
            size: of the images in pixels, an int (square), (height, width) or {"height": ..., "width": ...}.
            resize_mode: "crop" keeps the aspect ratio and crops the longer side; "squash" distorts the whole image.
            resample: a Pillow filter (2, bilinear, is transformers' default).
            background: behind transparent pixels: (r, g, b) in 0..255, or a colour name of Pillow.
            do_convert_rgb: False refuses images that are not RGB.
            do_resize: False keeps the size of the images; those of one call must then have the same size.
            do_color_quantize: False returns `pixel_values`, float32 (B, 3, H, W), instead of `input_ids`.
            do_rescale: False keeps `pixel_values` in 0..255; not with `do_color_quantize` or `do_normalize`.
            rescale_factor: multiplies `pixel_values`; with `do_color_quantize` only 1/255, the default.
            do_normalize: False keeps `pixel_values` in 0..1; not with `do_color_quantize`.
            image_mean, image_std: one number or three, for `do_normalize`: (value - mean) / std. With
                `do_color_quantize` only 0.5, the default, which maps [0, 1] to [-1, 1].
            input_data_format: "channels_last", "channels_first" or "none", see above.
            data_format: of `pixel_values`: "channels_first", or "channels_last" for (B, H, W, 3).
            return_tensors: "pt" for torch tensors; "np" or None for numpy arrays.
            device: of torch tensors.
            Other keys of transformers' configuration are accepted if they change nothing.
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
        self._palette = _resolve_palette(palette, clusters)
        own = {name: options.pop(name) for name in OPTION_NAMES if name in options}
        check_other_options(options)
        self._validated = ProcessingOptions(**{name: value for name, value in own.items() if value is not None})
        for name, value in vars(self._validated).items():
            setattr(self, name, copy.copy(value))

    @property
    def palette(self) -> ColorPalette | None:
        """The palette, or None."""
        return self._palette

    @property
    def clusters(self) -> Float32[np.ndarray, "v 3"] | None:
        """The palette's colours in [-1, 1], under transformers' name."""
        return None if self._palette is None else self._palette.clusters

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the configuration, as in transformers.

        Raises: ValueError, in one sentence that names the file, if it is damaged.
        """
        check_processor_files(pretrained_model_name_or_path, kwargs)
        return super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Load a processor, as in transformers.

        Raises: ValueError, prefixed with the folder or name, for invalid options.
        """
        name = os.fspath(pretrained_model_name_or_path)
        with prefix_errors(name):
            return super().from_pretrained(name, *args, **kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Create a processor from the contents of `preprocessor_config.json`; `resize_mode` defaults to "squash" there.

        Args:
            image_processor_dict: the configuration, of either library.
            kwargs: options that override the configuration. Unknown ones are ignored with a warning, or returned if
                `return_unused_kwargs` is True.
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
            logger.warning("ignored options that the image processor does not have: %s", ", ".join(unknown))
        return processor

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> "ImageGPTImageProcessor":
        """Load a `preprocessor_config.json` by its path."""
        return cls.from_pretrained(json_file, local_files_only=True)

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Write `preprocessor_config.json` into a folder, which is created; options as in transformers.

        Raises: OSError if it cannot be written; the file is written atomically.
        """
        folder = os.fspath(save_directory)
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot create the folder {folder} ({error.strerror}): choose another path") from error
        return super().save_pretrained(folder, push_to_hub, **kwargs)

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write the configuration to a file, atomically.

        Raises: OSError if it cannot be written.
        """
        atomic_write(Path(json_file_path), self.to_json_string().encode(), "the processor's configuration")

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of `preprocessor_config.json`: transformers' keys, `resize_mode` and `background`."""
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

    def preprocess(  # pyright: ignore[reportIncompatibleMethodOverride] - accepts more kinds of images
        self, images: ImageLike | Sequence[Any], **options: Unpack[ImageGPTImageProcessorKwargs]
    ) -> BatchFeature:
        """Prepare images for the model; calling the processor does the same.

        Args:
            images: one image or several, see the class.
            **options: those of the class, for this call only.
        Returns: `input_ids`, int64 (B, T), T = H * W; or `pixel_values`, float32 (B, 3, H, W).
        Raises: FileNotFoundError for a missing file; ValueError, with the image's index, for one that cannot be read,
            for an empty list, for invalid options, or if there is no palette.
        """
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        palette = _resolve_palette(given.pop("palette", None), given.pop("clusters", None)) or self._palette
        merged = self._merge_options(given)
        if merged.do_color_quantize and palette is None:
            raise ValueError("this processor has no palette: give it one, or set do_color_quantize to False")
        rgb = read_batch(images, merged)
        if palette is not None and merged.do_color_quantize:
            data = {"input_ids": palette.encode(rgb).reshape(len(rgb), -1)}
        else:
            data = {"pixel_values": compute_pixel_values(rgb, merged)}
        batch = BatchFeature(data, tensor_type=merged.return_tensors or "np")
        if merged.device is not None and merged.return_tensors == "pt":
            batch.to(merged.device)
        return batch

    def to_rgb(self, images: ImageLike | Sequence[Any]) -> UInt8[np.ndarray, "b h w 3"]:
        """Prepare images up to quantisation: read, composited onto the background, oriented, resized.

        Raises: as `preprocess`.
        """
        return read_batch(images, self._merge_options({}))

    def _merge_options(self, given: dict[str, Any]) -> ProcessingOptions:
        """Validate the processor's options, overridden by those of one call."""
        own = {name: getattr(self, name) for name in OPTION_NAMES}  # users may have set the attributes
        if not given and own == vars(self._validated):
            return self._validated
        own |= {name: given.pop(name) for name in OPTION_NAMES if name in given}
        check_other_options(given)
        return ProcessingOptions(**own)

    def decode(
        self, ids: ArrayLike | torch.Tensor, size: int | np.integer | Sequence[int] | dict[str, int] | None = None
    ) -> list[Image.Image]:
        """Convert ids to images.

        Args:
            ids: (B, T) or, for one image, (T,); a start token (id V) before H * W pixels is dropped.
            size: of the images, in any form the constructor accepts; None means the processor's.
        Returns: B images, of mode "L" if the palette is grey and "RGB" otherwise.
        Raises: ValueError if there is no palette, T is not H * W, or an id is not a colour.
        """
        if self._palette is None:
            raise ValueError("this processor has no palette: give it one to decode ids")
        target = self.size if size is None else get_size_dict(size)
        height, width = target["height"], target["width"]
        rows = to_id_array(ids, height, width, self._palette.num_colors)
        rgb = self._palette.decode(rows).reshape(len(rows), height, width, 3)
        return [Image.fromarray(image[..., 0] if self._palette.is_grey else image) for image in rgb]


class ImageGPTFeatureExtractor(ImageGPTImageProcessor):
    """The processor under its name in transformers 4's configurations; it is saved under the new name."""


class ImageGPTImageProcessorPil(ImageGPTImageProcessor):
    """The processor under the name of transformers' Pillow backend, which some folders and releases use."""


def _resolve_palette(palette: Any, clusters: Any) -> ColorPalette | None:
    if palette is not None and clusters is not None:
        raise ValueError("both palette and clusters were given: give one of them")
    if clusters is not None:
        return ColorPalette(clusters)
    if palette is not None and not isinstance(palette, ColorPalette):
        raise ValueError(f"palette is a {type(palette).__name__}: give a ColorPalette, or the colours as clusters")
    return palette
