"""ImageGPT without a head, as a transformers model: embeddings, masks and caches around the blocks of `layers`.

Names, arguments and files are those of transformers. Where the behaviour differs from its own ImageGPT, the docstring
says so; `docs/differences.md` lists it all.

Axes: B images, T positions, S cached and new positions, E positions of an encoder's output, C channels.
"""

import copy
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder

from imagegpt.config import ImageGPTConfig
from imagegpt.model import input_checks
from imagegpt.model.attention import kernels  # noqa: F401 - registers a backend
from imagegpt.model.cache_names import CACHE, takes_either_name
from imagegpt.model.initialization import initialize_module
from imagegpt.model.layers import ImageGPTAttention, ImageGPTBlock, ImageGPTLayerNorm
from imagegpt.model.loading_checks import load_with_checked_shapes
from imagegpt.model.output_recording import record_outputs
from imagegpt.model.pruning import prune_heads
from imagegpt.model.resizing import padded, resize_color_embeddings, resize_position_embeddings

logger = logging.get_logger(__name__)

LegacyCache = tuple[tuple[Tensor, Tensor], ...]


class ImageGPTPreTrainedModel(PreTrainedModel):
    """What all three models share: loading, saving, initialisation, and what transformers may do with them."""

    config: ImageGPTConfig
    config_class = ImageGPTConfig
    base_model_prefix = "transformer"
    main_input_name = "input_ids"
    input_modalities = ["image"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _no_split_modules = ["ImageGPTBlock"]  # noqa: RUF012 - transformers wants plain lists and dicts
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    # Sums of squares need float32, and so do the gains, under float16 and bfloat16 alike; see also the norm itself.
    _keep_in_fp32_modules_strict = ["ln_1", "ln_2", "ln_f"]  # noqa: RUF012
    # transformers 4 stored the causal mask of each block.
    _keys_to_ignore_on_load_unexpected = [r"\.(attn|crossattention)\.(bias|masked_bias)$"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": ImageGPTBlock,
        "attentions": OutputRecorder(ImageGPTAttention, layer_name=".attn", index=1),
        "cross_attentions": OutputRecorder(ImageGPTAttention, layer_name=".crossattention", index=1),
    }

    @property
    def body(self) -> "ImageGPTModel":
        """The model without a head."""
        return cast(ImageGPTModel, self.base_model)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a folder or a hub name, as in transformers; tensor-parallel with `tp_plan` or `distributed_config`.

        Raises: ShapeError if weights have other shapes than the configuration says, unless `ignore_mismatched_sizes`.
        """
        if kwargs.get("tp_plan") is not None or kwargs.get("distributed_config") is not None:
            from imagegpt.model.tensor_parallel import register_parallel_styles  # slow to import, and for few

            register_parallel_styles()
        return load_with_checked_shapes(super().from_pretrained, *args, **kwargs)

    def post_init(self) -> None:
        """As in transformers, which wants to know the norms that this model has."""
        if self.config.add_cross_attention:
            self._keep_in_fp32_modules_strict = {*(self._keep_in_fp32_modules_strict or ()), "ln_cross_attn"}
        super().post_init()

    def _init_weights(self, module: nn.Module) -> None:
        initialize_module(module, self.config)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # For classes from outside, transformers passes over modules that have no weights of their own, lest they draw
        # weights anew that were loaded. Attention and MLP are such modules, and draw theirs with
        # `transformers.initialization`, which leaves loaded weights alone.
        super()._initialize_weights(module, is_custom_code=False)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # transformers looks for the dispatch in this file; it is in `layers`

    def prune_heads(self, heads_to_prune: Mapping[int, Iterable[int]]) -> None:
        """Remove attention heads, as `imagegpt.model.pruning.prune_heads`; the cross-attention keeps all of its own."""
        attentions = {i: cast(ImageGPTBlock, block).attn for i, block in enumerate(self.body.h)}
        prune_heads(self.config, attentions, heads_to_prune)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Change the number of input tokens, in place, keeping the start token last.

        Args:
            new_num_tokens: colours + 1; None changes nothing.
            pad_to_multiple_of: add colours, which the model may draw, until the tokens are a multiple of this.
            mean_resizing: new rows are spread around the mean of the old ones; otherwise around 0, as in a fresh model.
        Returns: the token embedding.
        Raises: ValueError on fewer than 3 tokens, or a multiple below 1.
        """
        if pad_to_multiple_of is not None:
            wanted = self.config.vocab_size if new_num_tokens is None else new_num_tokens
            new_num_tokens = padded(wanted, pad_to_multiple_of)
        if new_num_tokens is not None and new_num_tokens != self.config.vocab_size:
            std, lm_head = self.config.initializer_range, getattr(self, "lm_head", None)
            resize_color_embeddings(self.body.wte, lm_head, new_num_tokens, std, around_mean=mean_resizing)
            self.config.vocab_size = new_num_tokens
        return self.body.wte

    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Move the model to another image size, in place, as `imagegpt.model.resizing.resize_position_embeddings`."""
        resize_position_embeddings(self.body.wpe, new_num_position_embeddings)
        self.config.n_positions = new_num_position_embeddings

    def get_position_embeddings(self) -> nn.Embedding:
        """The position embedding, (n_positions, C)."""
        return self.body.wpe


class ImageGPTModel(ImageGPTPreTrainedModel):
    """Embeddings, blocks and the final norm: pixel ids in, features out."""

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
        """The token embedding, (colours + 1, C)."""
        return self.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.wte = cast(nn.Embedding, value)

    @takes_either_name
    @input_checks.without_empty_cross_attentions
    @merge_with_config_defaults
    @record_outputs
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
        """Compute the features of each position.

        Args:
            input_ids: (B, T) token ids: the start token, then pixels in raster order.
            past_key_values: what earlier positions left: a transformers cache (dynamic, static, encoder-decoder), which
                is extended in place, or transformers 4's tuple of one (key, value) pair a block, answered in kind.
            attention_mask: (B, S), 1 for positions that may be seen and 0 for padding, or a ready-made 4-D mask.
            token_type_ids: (B, T) token ids whose embeddings are added.
            position_ids: (B, T) or (1, T); by default, consecutive from the first position the cache has not seen.
            head_mask: (n_head,) or (n_layer, n_head) factors on the attention weights.
            inputs_embeds: (B, T, C) in place of `input_ids`.
            encoder_hidden_states: (B, E, C), attended to by the cross-attention.
            encoder_attention_mask: (B, E), 1 where `encoder_hidden_states` may be seen.
            use_cache: return the keys and values; by default as the config says, and not while gradient checkpointing.
            kwargs: `output_attentions`, `output_hidden_states` (True, or the indices wanted), `return_dict`, and
                whatever the attention backend takes.
        Returns: `last_hidden_state` (B, T, C), normed; the cache; the recorded outputs.
        Raises: ValueError on contradictory inputs, wrong shapes, ids outside the vocabulary and positions that do not
            exist (on the CPU; on a GPU torch reports them), and on a filled cache where none can be used: in a
            bidirectional model, and while gradient checkpointing.
        """
        legacy = isinstance(past_key_values, (tuple, list))
        cache = self._prepare_cache(past_key_values, use_cache)
        hidden_states = self._embed(input_ids, inputs_embeds, token_type_ids, position_ids, cache)
        backend = self._attention_backend(hidden_states, head_mask, kwargs.get("output_attentions"))
        self_mask, cross_mask = self._create_masks(
            backend, hidden_states, attention_mask, position_ids, cache, encoder_hidden_states, encoder_attention_mask
        )
        # Without gradients there is nothing to checkpoint, but transformers before 5.24 does, and drops the cache.
        plain = self.gradient_checkpointing and self.training and not torch.is_grad_enabled()
        # Assisted decoding lowers n_layer for a while, to guess with the first blocks (assistant_early_exit).
        for block, mask in zip(self.h, self._split_head_mask(head_mask), strict=False):
            run = partial(nn.Module.__call__, block) if plain else block
            hidden_states = run(
                hidden_states,
                encoder_hidden_states,  # by position: reentrant checkpointing finds gradients there only
                past_key_values=cache,
                attention_mask=self_mask,
                head_mask=mask,
                encoder_attention_mask=cross_mask,
                attn_implementation=backend,
                **kwargs,
            )
        hidden_states = self.ln_f(hidden_states)
        past = tuple((layer.keys, layer.values) for layer in cast(Any, cache).layers) if legacy else cache
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states, **{CACHE: cast(Any, past if use_cache or legacy else None)}
        )

    def _prepare_cache(self, past: Cache | LegacyCache | None, use_cache: bool | None) -> Cache | None:
        if input_checks.is_filled(past) and not self.config.is_causal:
            raise ValueError(
                "past_key_values was given to a bidirectional model (is_causal=False), in which earlier pixels see "
                "later ones: feed all pixels at once"
            )
        if past is not None and self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            raise ValueError("past_key_values was given while gradient checkpointing: turn one of the two off")
        if isinstance(past, (tuple, list)):
            if len(past) not in (0, self.config.n_layer):
                raise ValueError(
                    f"past_key_values has {len(past)} pairs: give one for each of {self.config.n_layer} blocks"
                )
            return DynamicCache([(key, value) for key, value in past])
        if past is None and use_cache and self.config.is_causal:
            past = DynamicCache(config=self.config)
        if (
            past is not None
            and use_cache
            and self.config.add_cross_attention
            and not isinstance(past, EncoderDecoderCache)
        ):
            past = EncoderDecoderCache(past, DynamicCache(config=self.config))
        return past

    def _embed(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        """The stream (B, T, C) that enters the first block."""
        if (input_ids is None) == (inputs_embeds is None):
            given = "both" if input_ids is not None else "neither"
            raise ValueError(f"{given} of input_ids and inputs_embeds were given: give exactly one")
        if inputs_embeds is None:
            embeddings = self.wte(input_checks.checked_ids(input_ids, "input_ids", self.config.vocab_size))
        else:
            input_checks.check_embeddings(inputs_embeds, "inputs_embeds", self.config.n_embd)
            embeddings = inputs_embeds
        if position_ids is None:
            past, num_new = cache.get_seq_length() if cache is not None else 0, embeddings.shape[1]
            known_past = input_checks.cached_length(cache)
            if known_past is not None:
                input_checks.check_length(known_past + num_new, self.config.n_positions)
            position_ids = (torch.arange(num_new, device=embeddings.device) + past).unsqueeze(0)
        else:
            input_checks.check_positions(position_ids, self.config.n_positions)
        hidden_states = embeddings + self.wpe(position_ids).to(embeddings.device)
        if token_type_ids is not None:
            hidden_states = hidden_states + self.wte(
                input_checks.checked_ids(token_type_ids, "token_type_ids", self.config.vocab_size)
            )
        return self.drop(hidden_states)

    def _attention_backend(
        self, hidden_states: Tensor, head_mask: Tensor | None, output_attentions: bool | None
    ) -> str:
        """The backend for this call: the config's, unless something is asked for that only eager attention does."""
        chosen = self.config._attn_implementation
        if chosen == "eager" or (not torch.compiler.is_compiling() and hidden_states.numel() == 0):
            return "eager"  # the others fail on nothing
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        reasons = {
            "output_attentions": output_attentions,
            "head_mask": head_mask is not None,
            "reorder_and_upcast_attn": self.config.reorder_and_upcast_attn,
        }
        asked = [name for name, wanted in reasons.items() if wanted]
        if not asked:
            return cast(str, chosen)
        if not torch.compiler.is_compiling():
            logger.warning_once(
                f"{' and '.join(asked)}: {chosen} attention does not offer this, eager attention is used"
            )
        return "eager"

    def _create_masks(
        self,
        backend: str,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache | None,
        encoder_hidden_states: Tensor | None,
        encoder_attention_mask: Tensor | None,
    ) -> tuple[Any, Any]:
        """Masks of self-attention and cross-attention in the backend's own form; None where none is needed."""
        num_images, num_new = hidden_states.shape[:2]
        past = input_checks.cached_length(cache)
        input_checks.check_attention_mask(attention_mask, num_images, None if past is None else past + num_new)
        config = self.config
        if backend != config._attn_implementation:
            config = copy.copy(config)
            config._attn_implementation = backend
        if backend == "flex_attention" and cache is not None:
            cache = input_checks.with_lengths_of_now(cache)
        self_mask = create_causal_mask(  # bidirectional where config.is_causal is False
            config=config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE: cast(Any, cache)},
        )
        if encoder_hidden_states is None:
            return self_mask, None
        if not config.add_cross_attention:
            raise ValueError(
                "encoder_hidden_states was given to a model without add_cross_attention: set it in the config"
            )
        cross_mask = create_bidirectional_mask(
            config=config,
            inputs_embeds=hidden_states,
            attention_mask=encoder_attention_mask,
            encoder_hidden_states=encoder_hidden_states,
        )
        return self_mask, cross_mask

    def _split_head_mask(self, head_mask: Tensor | None) -> list[Tensor | None]:
        """One (n_head,) mask a block."""
        num_layers, num_heads = self.config.n_layer, self.config.n_head
        if head_mask is None:
            return [None] * num_layers
        if head_mask.shape not in ((num_heads,), (num_layers, num_heads)):
            raise ValueError(
                f"head_mask has the shape {tuple(head_mask.shape)}: give ({num_heads},) or ({num_layers}, {num_heads})"
            )
        return list(head_mask.expand(num_layers, num_heads))
