"""Which pixel each position has to predict, and the loss of what it predicts.

Axes: B images, T positions, P positions whose logits are kept, C channels, V colours.
"""

import operator
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from imagegpt.common.precision import at_least_float32
from imagegpt.model import input_checks as door
from imagegpt.model.tracing import has_values

IGNORED = -100  # the label of a pixel that is not to be predicted


def up_to(longest: int, x: Any, dim: int = 1) -> Any:
    """`x` without its last entry along `dim` where it is one longer than `longest`: a whole image's last pixel."""
    return x.narrow(dim, 0, longest) if isinstance(x, Tensor) and x.ndim > 1 and x.shape[dim] == longest + 1 else x


def kept_positions(logits_to_keep: Any, num_positions: int) -> slice | Tensor:
    """The positions whose logits are wanted, as an index.

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
                f"the indices of positions in one dimension, or a boolean for each of {num_positions}"
            )
        if is_index and has_values(logits_to_keep):
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
    labels: Tensor | None, shift_labels: Tensor | None, num_positions: int, kept: slice | Tensor, *, is_causal: bool
) -> Tensor:
    """The colour that each kept position has to predict, (B, P), -100 where there is none.

    Args:
        labels: (B, T) or (B, T + 1); position t of a causal model predicts label t + 1, of a bidirectional one label t.
        shift_labels: (B, T), label t + 1 at place t; `labels` do not count then.
        num_positions: T.
        kept: the positions, from `kept_positions`.
        is_causal: whether the model is.
    Raises: ValueError for another shape or type, for `shift_labels` of a bidirectional model, and if no position that
        is kept has a label.
    """
    if shift_labels is not None and not is_causal:
        raise ValueError(
            "shift_labels was given to a bidirectional model (is_causal=False), which predicts each position's own "
            "pixel: give labels"
        )
    given = cast(Tensor, labels if shift_labels is None else up_to(num_positions, shift_labels))
    targets = given
    if shift_labels is None and is_causal:
        # The last position predicts a pixel that is a label only if the image's last pixel was not fed.
        targets = functional.pad(given[:, 1:], (0, 1 if given.shape[1] == num_positions else 0), value=IGNORED)
    if targets.shape[1] != num_positions:
        raise ValueError(f"{given.shape[1]} labels were given for {num_positions} positions: give one a position")
    targets = targets[:, kept]
    if has_values(given) and bool((targets == IGNORED).all()) and not bool((given == IGNORED).all()):
        raise ValueError(
            "labels say nothing of the pixels that the kept positions predict, each of which is the next one: give "
            "more positions, or more labels"
        )
    return targets


def pixel_loss(logits: Tensor, targets: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """Mean negative log-likelihood in nats.

    Args:
        logits: (B, P, V).
        targets: (B, P), -100 for what is left out.
        num_items_in_batch: by which the sum is divided; None is the number of targets.
    Raises: ValueError if a target is no colour.
    """
    door.check_colors(targets, logits.shape[-1])
    # Half precision would lose the small differences of large sums.
    flat = logits.flatten(0, 1).to(at_least_float32(logits.dtype))
    reduction = "mean" if num_items_in_batch is None else "sum"
    loss = functional.cross_entropy(flat, targets.flatten().to(flat.device), reduction=reduction)
    return loss if num_items_in_batch is None else loss / num_items_in_batch
