"""The models' door: inputs are checked here, in Python, before any arithmetic.

Shapes and types always are. Values are looked at where there are any and on the CPU only, see `tracing.has_values`.

Axes: B images, T positions, S cached and new positions, C channels.
"""

import copy
from collections.abc import Callable
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.utils.generic import ModelOutput

from imagegpt.model.tracing import has_values


def checked_ids(ids: Any, name: str, vocab_size: int) -> Tensor:
    """Token ids (B, T) as int64.

    Args:
        ids: of any integer type.
        name: of the argument, for the error.
        vocab_size: tokens the model knows.
    Raises: ValueError for another type, shape or range.
    """
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        given = ids.dtype if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
        raise ValueError(f"{name} is {given}: give a tensor of whole numbers, (images, positions)")
    if ids.ndim != 2:
        raise ValueError(f"{name} has the shape {tuple(ids.shape)}: give (images, positions)")
    if has_values(ids):
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"{name} contains {low if low < 0 else high}: this model knows tokens 0 to {vocab_size - 1}, "
                "the last being the start token"
            )
    return ids.long()


def check_embeddings(embeddings: Tensor, name: str, width: int, num_images: int | None = None) -> None:
    """Raise ValueError unless `embeddings` is (images, positions, width), of as many images as there should be."""
    wrong_batch = num_images is not None and embeddings.ndim == 3 and embeddings.shape[0] != num_images
    if embeddings.ndim != 3 or embeddings.shape[-1] != width or wrong_batch:
        images = "images" if num_images is None else num_images
        raise ValueError(f"{name} has the shape {tuple(embeddings.shape)}: give ({images}, positions, {width})")


def check_attention_mask(mask: Any, num_images: int, num_positions: int | None) -> None:
    """Raise ValueError unless a mask is ready-made (4-D, or a backend's own), or (B, S).

    Args:
        mask: None is no mask.
        num_images: B.
        num_positions: S, or None where it is not known while tracing.
    """
    if not isinstance(mask, Tensor) or mask.ndim == 4:
        return
    if mask.ndim != 2 or mask.shape[0] != num_images or num_positions not in (None, mask.shape[1]):
        wanted = f"({num_images}, {'positions' if num_positions is None else num_positions})"
        raise ValueError(
            f"attention_mask has the shape {tuple(mask.shape)}: give {wanted}, the cached positions included, "
            "or a ready-made 4-D mask"
        )


def check_positions(position_ids: Tensor, num_positions: int) -> None:
    """Raise ValueError if a position does not exist."""
    if has_values(position_ids):
        low, high = int(position_ids.min()), int(position_ids.max())
        if low < 0 or high >= num_positions:
            raise ValueError(
                f"position_ids contains {low if low < 0 else high}: this model has positions 0 to {num_positions - 1}"
            )


def check_length(end: int, num_positions: int) -> None:
    """Raise ValueError if an input goes on past the last position."""
    if end > num_positions:
        raise ValueError(
            f"the input ends at position {end}, this model has {num_positions} positions: an image's last pixel is "
            "predicted, never fed, so feed the start token and all pixels but the last"
        )


def checked_labels(labels: Tensor, num_images: int, name: str = "labels") -> Tensor:
    """Pixel labels (B, T) as int64; `name` is for the error.

    Raises: ValueError for another type or number of images.
    """
    if labels.is_floating_point() or labels.ndim != 2 or labels.shape[0] != num_images:
        raise ValueError(
            f"{name} is {labels.dtype} of the shape {tuple(labels.shape)}: give whole numbers ({num_images}, positions)"
        )
    return labels.long()


def check_colors(labels: Tensor, num_colors: int) -> None:
    """Raise ValueError if a label is neither a colour nor -100, which is left out."""
    if has_values(labels):
        predicted = labels.masked_fill(labels == -100, 0)
        low, high = int(predicted.min()), int(predicted.max())
        if low < 0 or high >= num_colors:
            raise ValueError(
                f"labels contains {low if low < 0 else high}: colours are 0 to {num_colors - 1}, and -100 is left out"
            )


def cached_length(cache: Any) -> int | None:
    """Positions a cache has seen, 0 without a cache; None if only the device knows."""
    length = cache.get_seq_length() if cache is not None else 0
    if isinstance(length, Tensor):
        return int(length) if has_values(length) else None
    return length


def is_filled(past_key_values: Any) -> bool:
    """Whether a cache of any kind, tuples included, holds positions already."""
    return cached_length(past_key_values) != 0 if isinstance(past_key_values, Cache) else bool(past_key_values)


def with_lengths_of_now(cache: Cache) -> Cache:
    """A copy of a cache for the mask of flex_attention, which is a function that is called while attention runs.

    By then a static cache has counted the new positions in place, and the mask would let every query see one empty slot
    too many (so it happens to transformers' own models). Keys and values are not copied.
    """
    snapshot = copy.copy(cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache)
    snapshot.layers = [copy.copy(layer) for layer in snapshot.layers]
    for layer in cast(Any, snapshot.layers):
        if isinstance(getattr(layer, "cumulative_length", None), Tensor):
            layer.cumulative_length = layer.cumulative_length.clone()
    return snapshot


def without_empty_cross_attentions(forward: Callable[..., ModelOutput]) -> Callable[..., Any]:
    """Drop `cross_attentions` from a recorded output where there is no cross-attention.

    transformers records them whenever attentions are asked for, and so returns an empty tuple where it should be None.
    """

    @wraps(forward)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return_dict = kwargs.pop("return_dict", None)
        output = cast(Any, forward(self, *args, return_dict=True, **kwargs))
        if output.cross_attentions is not None and len(output.cross_attentions) == 0:
            output = type(output)(**{name: output[name] for name in output if name != "cross_attentions"})
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    return call
