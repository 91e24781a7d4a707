"""Choice of the attention backend for one forward pass, and the masks in the form it takes.

Axes: B images, T positions, S cached and new positions, E positions of an encoder's output, C channels.
"""

import copy
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.utils import logging

from imagegpt.config import ImageGPTConfig
from imagegpt.model import input_checks
from imagegpt.model.attention import kernels  # noqa: F401 - registers a backend
from imagegpt.model.cache import CACHE_ARGUMENT, num_cached_positions, snapshot_lengths

logger = logging.get_logger(__name__)


def select_backend(
    config: ImageGPTConfig, hidden_states: Tensor, head_mask: Tensor | None, output_attentions: bool | None
) -> str:
    """Return the config's backend, or "eager" if the call needs something that only eager attention offers."""
    configured = cast(str, config._attn_implementation)
    if configured == "eager" or (not torch.compiler.is_compiling() and hidden_states.numel() == 0):
        return "eager"  # the others fail on empty batches
    if output_attentions is None:
        output_attentions = config.output_attentions
    requirements = {
        "output_attentions": output_attentions,
        "head_mask": head_mask is not None,
        "reorder_and_upcast_attn": config.reorder_and_upcast_attn,
    }
    unsupported = [name for name, is_required in requirements.items() if is_required]
    if not unsupported:
        return configured
    if not torch.compiler.is_compiling():
        logger.warning_once(
            f"{configured} attention does not support {' and '.join(unsupported)}: eager attention is used instead"
        )
    return "eager"


def create_self_attention_mask(
    config: ImageGPTConfig,
    backend: str,
    hidden_states: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache: Cache | None,
) -> Any:
    """Return the mask of the self-attention in the backend's own form; None if it needs none.

    Args:
        config: of the model; `is_causal=False` makes the mask bidirectional.
        hidden_states: (B, T, C).
        attention_mask: the caller's, (B, S) or 4-D.
        position_ids: the caller's, (B, T).
    Raises: ValueError if the mask does not have a column per position.
    """
    num_images, num_new = hidden_states.shape[:2]
    num_cached = num_cached_positions(cache)
    num_positions = None if num_cached is None else num_cached + num_new
    input_checks.check_attention_mask(attention_mask, num_images, num_positions)
    if backend == "flex_attention" and cache is not None:
        cache = snapshot_lengths(cache)
    return create_causal_mask(
        config=_with_backend(config, backend),
        inputs_embeds=hidden_states,
        attention_mask=attention_mask,
        position_ids=position_ids,
        **{CACHE_ARGUMENT: cast(Any, cache)},
    )


def create_cross_attention_mask(
    config: ImageGPTConfig,
    backend: str,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None,
    encoder_attention_mask: Tensor | None,
) -> Any:
    """Return the mask of the cross-attention in the backend's own form; None if it needs none.

    Args:
        hidden_states: (B, T, C).
        encoder_hidden_states: (B, E, C); None if there is no encoder.
        encoder_attention_mask: the caller's, (B, E).
    Raises: ValueError if the model has no cross-attention.
    """
    if encoder_hidden_states is None:
        return None
    if not config.add_cross_attention:
        raise ValueError("encoder_hidden_states was given to a model without add_cross_attention: set it in the config")
    return create_bidirectional_mask(
        config=_with_backend(config, backend),
        inputs_embeds=hidden_states,
        attention_mask=encoder_attention_mask,
        encoder_hidden_states=encoder_hidden_states,
    )


def split_head_mask(config: ImageGPTConfig, head_mask: Tensor | None) -> list[Tensor | None]:
    """Return one (n_head,) mask per block."""
    num_layers, num_heads = config.n_layer, config.n_head
    if head_mask is None:
        return [None] * num_layers
    if head_mask.shape not in ((num_heads,), (num_layers, num_heads)):
        raise ValueError(
            f"head_mask has the shape {tuple(head_mask.shape)}: give ({num_heads},) or ({num_layers}, {num_heads})"
        )
    return list(head_mask.expand(num_layers, num_heads))


def _with_backend(config: ImageGPTConfig, backend: str) -> ImageGPTConfig:
    if backend != config._attn_implementation:
        config = copy.copy(config)
        config._attn_implementation = backend
    return config
