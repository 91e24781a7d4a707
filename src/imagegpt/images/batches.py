"""Batches: images of any kind as one RGB array or as `pixel_values`, and ids of any kind as one array.

Axis letters: B images, H height, W width.
"""

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from imagegpt.images.decoding import out_of_memory_error
from imagegpt.images.processor_options import ProcessingOptions
from imagegpt.images.reading import ImageLike, flatten_images, read_image, resize_image


def read_batch(images: ImageLike | Sequence[Any], options: ProcessingOptions) -> UInt8[np.ndarray, "b h w 3"]:
    """Read images of any kind, composite them onto the background, apply their orientation, and resize them.

    Raises: FileNotFoundError for a missing file; ValueError, with the image's index, for one that cannot be read;
        ValueError for an empty list, or sizes that differ without `do_resize`.
    """
    if _needs_no_processing(images, options):
        return images
    flat = flatten_images(images, options.input_data_format)
    if not flat:
        raise ValueError("the list of images is empty: give at least one image")
    arrays = []
    for index, image in enumerate(flat):
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
            raise out_of_memory_error(f"image {index} of {len(flat)}") from error
        except (ValueError, FileNotFoundError) as error:
            prefix = f"image {index} of {len(flat)}: " if len(flat) > 1 else ""
            error_type = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise error_type(f"{prefix}{error}") from error
        arrays.append(np.asarray(read))
    if len({array.shape for array in arrays}) > 1:
        sizes = sorted({array.shape[:2] for array in arrays})
        raise ValueError(
            f"do_resize is False and the images differ in height and width ({', '.join(map(str, sizes))}): "
            "give images of one size, or set do_resize to True"
        )
    return np.stack(arrays)


def compute_pixel_values(
    rgb: UInt8[np.ndarray, "b h w 3"], options: ProcessingOptions
) -> Float32[np.ndarray, "b _ _ _"]:
    """Rescale and normalise, by a lookup table of the 256 values of each channel."""
    table = np.arange(256, dtype=np.float64)[:, None].repeat(3, axis=1)
    if options.do_rescale:
        table *= options.rescale_factor
    if options.do_normalize:
        table = (table - options.image_mean) / options.image_std
    table = table.astype(np.float32)
    axis = -1 if options.data_format == "channels_last" else 1
    return np.stack([table[rgb[..., channel], channel] for channel in range(3)], axis=axis)


def _needs_no_processing(images: Any, options: ProcessingOptions) -> TypeGuard[np.ndarray]:
    """Whether images are a finished batch: a numpy array, uint8, (B, H, W, 3), of the requested size."""
    return (
        isinstance(images, np.ndarray)
        and images.dtype == np.uint8
        and images.ndim == 4
        and images.shape[1:] == (options.size["height"], options.size["width"], 3)
        and len(images) > 0
        and options.input_data_format in (None, "channels_last")
    )


def to_id_array(ids: Any, height: int, width: int, num_colors: int) -> np.ndarray:
    """Convert ids to an array with one row of H * W ids per image.

    Args:
        ids: (B, T) or, for one image, (T,), as an array, tensor or nested lists; a start token (id V) before H * W
            pixels is dropped.
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
