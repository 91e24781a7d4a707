"""The loss of pixel predictions: which pixel each position predicts, and the cross-entropy in nats.

Axes: B images, T positions, P positions whose logits are kept, C channels, V colours.
"""

import operator
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from imagegpt.common.precision import at_least_float32
from imagegpt.model.input_checks import IGNORE_INDEX, check_targets, validate_labels
from imagegpt.model.tracing import can_read_values


def drop_final_pixel(inputs: Mapping[str, Any], num_positions: int) -> dict[str, Any]:
    """Shorten inputs that are one position too long for the model: the last pixel of an image is only predicted.

    Args:
        inputs: of `ImageGPTModel`, by name.
    Returns: the inputs, those of another length unchanged.
    """
    names = ("input_ids", "inputs_embeds", "token_type_ids", "position_ids")
    mask = _drop_last(inputs["attention_mask"], num_positions, dim=-1)
    if isinstance(mask, Tensor) and mask.ndim == 4:
        mask = _drop_last(mask, num_positions, dim=-2)
    return {**inputs, **{name: _drop_last(inputs[name], num_positions) for name in names}, "attention_mask": mask}


def _drop_last(x: Any, max_length: int, dim: int = 1) -> Any:
    """Drop the last entry along `dim` if there is exactly one too many."""
    is_longer = isinstance(x, Tensor) and x.ndim > 1 and x.shape[dim] == max_length + 1
    return x.narrow(dim, 0, max_length) if is_longer else x


def resolve_logits_to_keep(logits_to_keep: Any, num_positions: int) -> slice | Tensor:
    """Return an index of the positions whose logits to compute.

    Args:
        logits_to_keep: how many of the last positions, 0 for all; or a tensor (P,) of indices, or (T,) of booleans.
        num_positions: T.
    Raises: ValueError for anything else.
    """
    if isinstance(logits_to_keep, Tensor):
        is_mask = logits_to_keep.dtype == torch.bool
        is_index = not is_mask and not logits_to_keep.is_floating_point() and not logits_to_keep.is_complex()
        if logits_to_keep.ndim != 1 or not (is_index or (is_mask and len(logits_to_keep) == num_positions)):
            raise ValueError(
                f"logits_to_keep is {logits_to_keep.dtype} of the shape {tuple(logits_to_keep.shape)}: give a number, "
                f"a 1-D tensor of indices, or {num_positions} booleans"
            )
        if is_index and can_read_values(logits_to_keep):
            low, high = int(logits_to_keep.min()), int(logits_to_keep.max())
            if low < -num_positions or high >= num_positions:
                raise ValueError(
                    f"logits_to_keep contains {low if low < -num_positions else high}: the input has positions 0 to "
                    f"{num_positions - 1}"
                )
        return logits_to_keep
    try:
        number = operator.index(logits_to_keep)
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(
            f"logits_to_keep is {logits_to_keep!r}: give how many of the last positions, 0 for all, or a tensor of "
            "indices"
        )
    return slice(-number, None) if number else slice(None)


def pixel_targets(
    labels: Tensor | None,
    shift_labels: Tensor | None,
    shape: tuple[int, int],
    slice_indices: slice | Tensor,
    *,
    is_causal: bool,
) -> Tensor:
    """Return the colour that each kept position should predict, (B, P), -100 to ignore it.

    Args:
        labels: (B, T) or (B, T + 1); position t of a causal model predicts label t + 1, of a bidirectional one label t.
        shift_labels: (B, T), label t + 1 at index t; replaces `labels`.
        shape: (B, T).
        slice_indices: the kept positions, from `resolve_logits_to_keep`.
    Raises: ValueError for another shape or type, for `shift_labels` of a bidirectional model, and if no kept position
        has a label.
    """
    num_images, num_positions = shape
    if shift_labels is not None and not is_causal:
        raise ValueError(
            "shift_labels was given to a bidirectional model (is_causal=False), which predicts each position's own "
            "pixel: give labels"
        )
    if shift_labels is None:
        given = targets = validate_labels(cast(Tensor, labels), num_images, "labels")
    else:
        given = targets = _drop_last(validate_labels(shift_labels, num_images, "shift_labels"), num_positions)
    if shift_labels is None and is_causal:
        # The last position has a label only if the image's last pixel was not an input.
        targets = functional.pad(given[:, 1:], (0, 1 if given.shape[1] == num_positions else 0), value=IGNORE_INDEX)
    if targets.shape[1] != num_positions:
        raise ValueError(f"{given.shape[1]} labels were given for {num_positions} positions: give one per position")
    targets = targets[:, slice_indices]
    is_unlabelled = can_read_values(given) and bool((targets == IGNORE_INDEX).all())
    if is_unlabelled and not bool((given == IGNORE_INDEX).all()):
        raise ValueError(
            "no position in logits_to_keep has a label for the next pixel, which it predicts: keep more positions, or "
            "give more labels"
        )
    return targets


def pixel_loss(logits: Tensor, targets: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """Return the mean negative log-likelihood in nats.

    Args:
        logits: (B, P, V).
        targets: (B, P), -100 to ignore.
        num_items_in_batch: divisor of the summed loss; None divides by the number of targets.
    Raises: ValueError if a target is not a colour.
    """
    check_targets(targets, logits.shape[-1])
    reduction = "mean" if num_items_in_batch is None else "sum"
    loss = cross_entropy(logits.flatten(0, 1), targets.flatten().to(logits.device), reduction)
    return loss if num_items_in_batch is None else loss / num_items_in_batch


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Compute torch's cross-entropy in at least float32: half precision would lose small differences of large sums."""
    return functional.cross_entropy(logits.to(at_least_float32(logits.dtype)), targets, reduction=reduction)
