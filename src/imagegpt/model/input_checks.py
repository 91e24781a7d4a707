"""Validation of the models' inputs, in Python, before any arithmetic.

Shapes and types are always checked; values only where reading them is free, see `tracing.can_read_values`.

Axes: B images, T positions, S cached and new positions, C channels.
"""

from typing import Any

import torch
from torch import Tensor

from imagegpt.model.tracing import can_read_values

IGNORE_INDEX = -100  # the label of a pixel that does not count in the loss, as in torch


def validate_ids(ids: Any, name: str, vocab_size: int) -> Tensor:
    """Check token ids (B, T) of any integer type and return them as int64.

    Raises: ValueError for another type, shape or range.
    """
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        given = ids.dtype if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
        raise ValueError(f"{name} is {given}: give an integer tensor (images, positions)")
    if ids.ndim != 2:
        raise ValueError(f"{name} has the shape {tuple(ids.shape)}: give (images, positions)")
    invalid = _first_outside(ids, 0, vocab_size - 1)
    if invalid is not None:
        raise ValueError(
            f"{name} contains {invalid}: this model has tokens 0 to {vocab_size - 1}, the last being the start token"
        )
    return ids.long()


def check_embeddings(embeddings: Tensor, name: str, width: int, num_images: int | None = None) -> None:
    """Raise ValueError unless `embeddings` is (images, positions, width), with `num_images` images if that is given."""
    wrong_batch = num_images is not None and embeddings.ndim == 3 and embeddings.shape[0] != num_images
    if embeddings.ndim != 3 or embeddings.shape[-1] != width or wrong_batch:
        images = "images" if num_images is None else num_images
        raise ValueError(f"{name} has the shape {tuple(embeddings.shape)}: give ({images}, positions, {width})")


def check_attention_mask(mask: Any, num_images: int, num_positions: int | None) -> None:
    """Raise ValueError unless a mask is (B, S), 4-D, or in a backend's own form.

    Args:
        mask: may be None.
        num_images: B.
        num_positions: S, or None if it is unknown while tracing.
    """
    if not isinstance(mask, Tensor) or mask.ndim == 4:
        return
    if mask.ndim != 2 or mask.shape[0] != num_images or num_positions not in (None, mask.shape[1]):
        expected = f"({num_images}, {'positions' if num_positions is None else num_positions})"
        raise ValueError(
            f"attention_mask has the shape {tuple(mask.shape)}: give {expected}, including the cached positions, "
            "or a 4-D mask"
        )


def check_positions(position_ids: Tensor, num_positions: int) -> None:
    """Raise ValueError if a position does not exist."""
    invalid = _first_outside(position_ids, 0, num_positions - 1)
    if invalid is not None:
        raise ValueError(f"position_ids contains {invalid}: this model has positions 0 to {num_positions - 1}")


def check_length(end: int, num_positions: int) -> None:
    """Raise ValueError if an input runs past the last position."""
    if end > num_positions:
        raise ValueError(
            f"the input ends at position {end}, this model has {num_positions} positions: an image's last pixel is "
            "predicted, never fed, so feed the start token and all pixels but the last"
        )


def validate_labels(labels: Tensor, num_images: int, name: str) -> Tensor:
    """Check pixel labels (B, T) and return them as int64; `name` is for the error.

    Raises: ValueError for another type or number of images.
    """
    if labels.is_floating_point() or labels.ndim != 2 or labels.shape[0] != num_images:
        raise ValueError(
            f"{name} is {labels.dtype} of the shape {tuple(labels.shape)}: give integers ({num_images}, positions)"
        )
    return labels.long()


def check_targets(targets: Tensor, num_colors: int) -> None:
    """Raise ValueError if a target is neither a colour nor -100."""
    if can_read_values(targets):
        invalid = _first_outside(targets.masked_fill(targets == IGNORE_INDEX, 0), 0, num_colors - 1)
        if invalid is not None:
            raise ValueError(
                f"labels contains {invalid}: colours are 0 to {num_colors - 1}, and {IGNORE_INDEX} is ignored"
            )


def _first_outside(x: Tensor, low: int, high: int) -> int | None:
    """Return the smallest value below `low`, or else the largest above `high`; None if there is none to read."""
    if not can_read_values(x):
        return None
    smallest, largest = int(x.min()), int(x.max())
    return smallest if smallest < low else largest if largest > high else None
