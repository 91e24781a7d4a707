"""`ImageGPTModel`: ImageGPT without a head. Token and position embeddings, the blocks of `layers`, a final norm.

From "Generative Pretraining from Pixels" (Chen et al., 2020). Names, arguments and files are those of transformers. If
the behaviour differs from transformers' ImageGPT, the docstring says so; `docs/differences.md` has the full list.

Axes: B images, T positions, S cached and new positions, E positions of an encoder's output, C channels.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.utils.generic import merge_with_config_defaults

from imagegpt.config import ImageGPTConfig
from imagegpt.model import input_checks
from imagegpt.model.attention import dispatch
from imagegpt.model.cache import (
    CACHE_ARGUMENT,
    LegacyCache,
    accept_either_cache_argument,
    num_cached_positions,
    prepare_cache,
    to_legacy_cache,
)
from imagegpt.model.layers import ImageGPTBlock, ImageGPTLayerNorm
from imagegpt.model.output_capturing import capture_outputs
from imagegpt.model.pretrained_model import ImageGPTPreTrainedModel


class ImageGPTModel(ImageGPTPreTrainedModel):
    """Embeddings, blocks and the final norm: pixel ids in, features out.

    Inputs:
        input_ids: (B, T) token ids: the start token, then pixels in raster order.
        past_key_values: keys and values of earlier positions: a transformers cache (dynamic, static, encoder-decoder),
            extended in place, or transformers 4's tuple of one (key, value) pair per block, returned as a tuple.
        attention_mask: (B, S), 1 for visible positions and 0 for padding, or a 4-D mask.
        token_type_ids: (B, T) token ids whose embeddings are added.
        position_ids: (B, T) or (1, T); by default consecutive, after the cached positions.
        head_mask: (n_head,) or (n_layer, n_head) factors on the attention weights.
        inputs_embeds: (B, T, C) instead of `input_ids`.
        encoder_hidden_states: (B, E, C), for the cross-attention.
        encoder_attention_mask: (B, E), 1 where `encoder_hidden_states` are visible.
        use_cache: return the keys and values; defaults to the config's, and to False with gradient checkpointing.
        kwargs: `output_attentions`, `output_hidden_states` (True, or indices), `return_dict`, and arguments of the
            attention backend.
    """

    def __init__(self, config: ImageGPTConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(ImageGPTBlock(config, layer_idx) for layer_idx in range(config.n_layer))
        self.ln_f = ImageGPTLayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embedding, (colours + 1, C)."""
        return self.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.wte = cast(nn.Embedding, value)

    @accept_either_cache_argument
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Cache | LegacyCache | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Compute the features of each position; the class documents the inputs.

        Returns: `last_hidden_state` (B, T, C), after the final norm; the cache; captured hidden states and attentions.
        Raises: ValueError for contradictory inputs, wrong shapes, ids and positions out of range (on the CPU; on a GPU
            torch reports them), and a cache with positions in a bidirectional model or while gradient checkpointing.
        """
        is_checkpointing = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        cache = prepare_cache(past_key_values, self.config, use_cache, is_checkpointing=is_checkpointing)
        h = self._embed(input_ids, inputs_embeds, token_type_ids, position_ids, cache)
        backend = dispatch.select_backend(self.config, h, head_mask, kwargs.get("output_attentions"))
        mask = dispatch.create_self_attention_mask(self.config, backend, h, attention_mask, position_ids, cache)
        cross_mask = dispatch.create_cross_attention_mask(
            self.config, backend, h, encoder_hidden_states, encoder_attention_mask
        )
        # Not strict: assisted decoding lowers n_layer for a while, to draft with the first blocks.
        for block, layer_head_mask in zip(self.h, dispatch.split_head_mask(self.config, head_mask), strict=False):
            h = block(
                h,
                encoder_hidden_states,  # by position: reentrant checkpointing finds gradients only there
                past_key_values=cache,
                attention_mask=mask,
                head_mask=layer_head_mask,
                encoder_attention_mask=cross_mask,
                attn_implementation=backend,
                **kwargs,
            )
        is_legacy = isinstance(past_key_values, (tuple, list))
        returned_cache: Any = to_legacy_cache(cache) if is_legacy else cache if use_cache else None
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.ln_f(h), **{CACHE_ARGUMENT: returned_cache}
        )

    def _embed(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        """Return the residual stream (B, T, C) that enters the first block: wte[ids] + wpe[positions]."""
        if (input_ids is None) == (inputs_embeds is None):
            given = "both" if input_ids is not None else "neither"
            raise ValueError(f"{given} of input_ids and inputs_embeds were given: give exactly one")
        if inputs_embeds is None:
            embeddings = self.wte(input_checks.validate_ids(input_ids, "input_ids", self.config.vocab_size))
        else:
            input_checks.check_embeddings(inputs_embeds, "inputs_embeds", self.config.n_embd)
            embeddings = inputs_embeds
        positions = self._positions(embeddings, position_ids, cache)
        h = embeddings + self.wpe(positions).to(embeddings.device)
        if token_type_ids is not None:
            h = h + self.wte(input_checks.validate_ids(token_type_ids, "token_type_ids", self.config.vocab_size))
        return self.drop(h)

    def _positions(self, embeddings: Tensor, position_ids: Tensor | None, cache: Cache | None) -> Tensor:
        """Return the caller's positions, or those that follow the cached ones, (1, T)."""
        if position_ids is not None:
            input_checks.check_positions(position_ids, self.config.n_positions)
            return position_ids
        num_new, num_cached = embeddings.shape[1], num_cached_positions(cache)
        if num_cached is not None:
            input_checks.check_length(num_cached + num_new, self.config.n_positions)
        start = cache.get_seq_length() if cache is not None else 0  # a tensor in a static cache: no graph break
        return (torch.arange(num_new, device=embeddings.device) + start).unsqueeze(0)
