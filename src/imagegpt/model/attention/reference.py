"""Eager attention: softmax(Q K^T / sqrt(D)) V in torch operations, the reference for every other implementation.

Axes: B images, T positions of the queries, S positions of the keys, H heads, D head width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils.generic import maybe_autocast

from imagegpt.common.precision import at_least_float32

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    head_mask: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Compute attention; the only backend that returns its weights or takes a head mask.

    Args:
        module: the attention layer; its `reorder_and_upcast_attn` computes scores in at least float32.
        query: (B, H, T, D).
        key: (B, H, S, D).
        value: (B, H, S, D).
        attention_mask: broadcastable to (B, H, T, S): True where attention is allowed, or numbers added to the scores.
        scaling: factor on the scores.
        dropout: rate on the weights, applied only in training.
        head_mask: (H,), factors on the heads' weights.
        kwargs: arguments of other backends; ignored.
    Returns: the mixed values (B, T, H, D) and the attention weights (B, H, T, S).
    """
    # Scale the query before the product: unscaled scores could overflow in float16.
    if module.reorder_and_upcast_attn:
        with maybe_autocast(query.device.type, enabled=False):
            dtype = at_least_float32(query.dtype)
            scores = (query.to(dtype) * scaling) @ key.to(dtype).transpose(-1, -2)
    else:
        scores = (query * scaling) @ key.transpose(-1, -2)
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=at_least_float32(scores.dtype)).to(value.dtype)
    weights = functional.dropout(weights, p=dropout, training=module.training)
    if head_mask is not None:
        weights = weights * head_mask.to(weights.dtype).view(-1, 1, 1)
    return (weights @ value).transpose(1, 2), weights
