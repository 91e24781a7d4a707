"""Many images become one array: bytes for the palette, or floats for whoever wants `pixel_values`; so do ids of images.

Axis letters: B images, H height, W width.
"""

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from imagegpt.images.decoding import out_of_memory
from imagegpt.images.processor_options import ProcessingOptions
from imagegpt.images.reading import ImageLike, read_image, resize_image, single_images


def read_batch(images: ImageLike | Sequence[Any], options: ProcessingOptions) -> UInt8[np.ndarray, "b h w 3"]:
    """Images of any kind as one RGB array: read, laid on the background, oriented, resized.

    Raises: FileNotFoundError for a missing file; ValueError, naming the image's place in the list, for one that cannot
        be read or understood; ValueError for an empty list, or sizes that differ without `do_resize`.
    """
    if _is_ready(images, options):
        return images
    several = single_images(images, options.input_data_format)
    if not several:
        raise ValueError("the list of images is empty: give at least one image")
    arrays = []
    for index, image in enumerate(several):
        try:
            read = read_image(
                image,
                options.background,
                input_data_format=options.input_data_format,
                convert=options.do_convert_rgb,
            )
            if options.do_resize:
                read = resize_image(read, options.size, options.resize_mode, options.resample)
        except MemoryError as error:
            raise out_of_memory(f"image {index} of {len(several)}") from error
        except (ValueError, FileNotFoundError) as error:
            place = f"image {index} of {len(several)}: " if len(several) > 1 else ""
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(f"{place}{error}") from error
        arrays.append(np.asarray(read))
    if len({array.shape for array in arrays}) > 1:
        sizes = sorted({array.shape[:2] for array in arrays})
        raise ValueError(
            f"do_resize is False and the images differ in height and width ({', '.join(map(str, sizes))}): "
            "give images of one size, or set do_resize to True"
        )
    return np.stack(arrays)


def pixel_values(rgb: UInt8[np.ndarray, "b h w 3"], options: ProcessingOptions) -> Float32[np.ndarray, "b _ _ _"]:
    """The bytes as floats, by a table of what becomes of each of the 256 values in each channel."""
    table = np.arange(256, dtype=np.float64)[:, None].repeat(3, axis=1)
    if options.do_rescale:
        table *= options.rescale_factor
    if options.do_normalize:
        table = (table - options.image_mean) / options.image_std
    table = table.astype(np.float32)
    axis = -1 if options.data_format == "channels_last" else 1
    return np.stack([table[rgb[..., channel], channel] for channel in range(3)], axis=axis)


def _is_ready(images: Any, options: ProcessingOptions) -> TypeGuard[np.ndarray]:
    """Whether this is a batch that needs nothing done: numpy, uint8, (B, H, W, 3) of the right size."""
    return (
        isinstance(images, np.ndarray)
        and images.dtype == np.uint8
        and images.ndim == 4
        and images.shape[1:] == (options.size["height"], options.size["width"], 3)
        and len(images) > 0
        and options.input_data_format in (None, "channels_last")
    )


def id_rows(ids: Any, height: int, width: int, num_colors: int) -> np.ndarray:
    """Ids of images, however they are given, as an array of a row an image.

    Args:
        ids: (B, T) or, for one image, (T,), an array, tensor or nested lists; a start token (id V) in front of H * W
            pixels is dropped.
        height: of the images, in pixels.
        width: likewise.
        num_colors: V.
    Raises: ValueError if T is not H * W, or the rows differ in length.
    """
    try:
        rows = ids.detach().cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids)
    except ValueError as error:
        raise ValueError("the rows of ids differ in length: every image must have the same number") from error
    if rows.ndim not in (1, 2):
        raise ValueError(f"ids have shape {rows.shape}: they must be (images, pixels) or (pixels,)")
    rows = np.atleast_2d(rows)
    if rows.shape[1] == height * width + 1 and (rows[:, 0] == num_colors).all():
        rows = rows[:, 1:]
    if rows.shape[1] != height * width:
        raise ValueError(
            f"each image has {rows.shape[1]} ids, {height}x{width} pixels are {height * width}: "
            "give that many, or the size they have"
        )
    return rows
