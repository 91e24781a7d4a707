"""The arithmetic of ImageGPT: norm, projection, attention, MLP, block.

From "Generative Pretraining from Pixels" (Chen et al., 2020); weights are named and laid out as in transformers.
A GPT-2 block with two differences: the norm only scales (it subtracts no mean and adds no bias), and the activation is
x * sigmoid(1.702 x). Without dropout, a block computes

    h = h + attention(norm_1(h))
    h = h + mlp(norm_2(h))

Axes: B images, T positions of the queries, S positions of the keys, H heads, D head width, C channels.
"""

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from imagegpt.common.precision import at_least_float32
from imagegpt.config import ImageGPTConfig
from imagegpt.model.attention.reference import AttentionFunction, eager_attention_forward

_SIGMOID_FACTOR = 1.702  # of the original code's activation


class ImageGPTLayerNorm(nn.Module):
    """Divide by the root mean square over the channels, then scale: x * rsqrt(mean(x^2) + eps) * weight.

    Source: the original code. Its docstring claims to centre the input, but the code does not: `nn.LayerNorm` would
    load these weights, run, and be wrong. Squares are summed in float32 (in float16, 300^2 overflows). The weight of a
    norm created in half precision is float32 too, as when transformers loads one; `model.half()` casts it, as usual.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=at_least_float32(torch.get_default_dtype())))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise (..., C) in at least float32; the output has the input's dtype."""
        compute_dtype = at_least_float32(hidden_states.dtype)
        x, weight = hidden_states.to(compute_dtype), self.weight.to(compute_dtype)
        return functional.rms_norm(x, weight.shape, weight, self.eps).to(hidden_states.dtype)

    def extra_repr(self) -> str:
        """Return size and epsilon, for `print(model)`."""
        return f"{self.weight.shape[0]}, eps={self.eps}"


class Projection(Conv1D):
    """x @ weight + bias, with the weight stored as (in, out) like OpenAI's, and an optional bias.

    A subclass of transformers' `Conv1D`, so that peft and quantisers recognise the weight's layout.
    """

    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(out_features, in_features)
        if not bias:
            self.bias = None

    @property
    def in_features(self) -> int:
        """The number of inputs, named as in `nn.Linear`."""
        return self.nx

    @property
    def out_features(self) -> int:
        """The number of outputs, named as in `nn.Linear`."""
        return self.nf

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return functional.linear(x, self.weight.t(), self.bias)

    def __repr__(self) -> str:
        return f"Projection({self.nx}, {self.nf}, bias={self.bias is not None})"


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of the original code."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply to each element; any shape."""
        # Computed as silu(1.702 x) / 1.702: one pass over memory instead of three. In float16, 1.702 x would overflow
        # from x = 38,497 on, and its gradient would be nan.
        y = x.float() if x.dtype == torch.float16 else x
        return functional.silu(y * _SIGMOID_FACTOR).mul_(1 / _SIGMOID_FACTOR).to(x.dtype)


class ImageGPTAttention(nn.Module):
    """Multi-head self-attention, causal unless `config.is_causal` is False, or attention over an encoder's output."""

    def __init__(self, config: ImageGPTConfig, is_cross_attention: bool = False, layer_idx: int = 0) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_cross_attention = is_cross_attention
        self.is_causal = config.is_causal and not is_cross_attention  # read by transformers' backends
        self.reorder_and_upcast_attn = config.reorder_and_upcast_attn
        self.head_dim = config.n_embd // config.n_head
        # Original indices of the heads that pruning has left. A head mask has a factor for every original head.
        self.kept_heads = list(range(config.n_head)) if is_cross_attention else config.kept_heads(layer_idx)
        self.scaling = self.head_dim**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scaling /= layer_idx + 1

        inner = len(self.kept_heads) * self.head_dim
        if is_cross_attention:
            self.c_attn = Projection(config.n_embd, 2 * inner, config.use_bias)
            self.q_attn = Projection(config.n_embd, inner, config.use_bias)
        else:
            self.c_attn = Projection(config.n_embd, 3 * inner, config.use_bias)
        self.c_proj = Projection(inner, config.n_embd, config.use_bias)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self,
        hidden_states: Tensor,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        attn_implementation: str | AttentionFunction | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Mix values into (B, T, C).

        Args:
            hidden_states: (B, T, C), normed.
            past_key_values: keys and values of earlier positions; the new ones are appended.
            attention_mask: in the backend's form.
            head_mask: (n_head,), indexed by the original heads.
            encoder_hidden_states: (B, S, C), for cross-attention.
            attn_implementation: the backend, by name or as a function like `eager_attention_forward`; defaults to the
                config's.
        Returns: the output (B, T, C), and the attention weights (B, H, T, S) if the backend returns them, else None.
        """
        if self.is_cross_attention:
            query = self._split_heads(self.q_attn(hidden_states))
            key, value = self._encoder_keys_and_values(cast(Tensor, encoder_hidden_states), past_key_values)
        else:
            query, key, value = (self._split_heads(x) for x in self.c_attn(hidden_states).chunk(3, dim=-1))
            if past_key_values is not None:
                has_encoder = isinstance(past_key_values, EncoderDecoderCache)
                cache = past_key_values.self_attention_cache if has_encoder else past_key_values
                key, value = cache.update(key, value, self.layer_idx)
        if head_mask is not None:
            kwargs["head_mask"] = head_mask[self.kept_heads]
        kwargs["is_causal"] = self.is_causal  # the caller's value is for the self-attention

        attention: Any = attn_implementation or self.config._attn_implementation
        if isinstance(attention, str):
            attention = ALL_ATTENTION_FUNCTIONS.get_interface(attention, eager_attention_forward)
        mixed, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attn_pdrop if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.resid_dropout(self.c_proj(mixed.flatten(2))), weights

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, T, H * D) -> (B, H, T, D)

    def _encoder_keys_and_values(self, encoder_hidden_states: Tensor, cache: Cache | None) -> tuple[Tensor, Tensor]:
        """Return keys and values of the encoder's output, computed once and then read from the cache.

        Only an `EncoderDecoderCache` stores them separately. Any other cache would append them to the block's own keys,
        so with it they are recomputed at each step.
        """
        encoder_cache = cache if isinstance(cache, EncoderDecoderCache) else None
        if encoder_cache is not None and encoder_cache.is_updated.get(self.layer_idx):
            layer = cast(Any, encoder_cache.cross_attention_cache.layers[self.layer_idx])
            return layer.keys, layer.values
        key, value = (self._split_heads(x) for x in self.c_attn(encoder_hidden_states).chunk(2, dim=-1))
        if encoder_cache is not None:
            key, value = encoder_cache.cross_attention_cache.update(key, value, self.layer_idx)
            encoder_cache.is_updated[self.layer_idx] = True
        return key, value


class ImageGPTMLP(nn.Module):
    """c_proj(act(c_fc(x))): two projections with the activation in between, `config.inner_size` channels wide."""

    def __init__(self, config: ImageGPTConfig) -> None:
        super().__init__()
        self.c_fc = Projection(config.n_embd, config.inner_size, config.use_bias)
        self.c_proj = Projection(config.inner_size, config.n_embd, config.use_bias)
        self.act = QuickGELU() if config.activation_function == "quick_gelu" else ACT2FN[config.activation_function]
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return self.dropout(self.c_proj(self.act(self.c_fc(hidden_states))))


class ImageGPTBlock(GradientCheckpointingLayer):
    """Attention and MLP, each on the normed residual stream and added to it; optionally cross-attention in between."""

    def __init__(self, config: ImageGPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.ln_1 = ImageGPTLayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = ImageGPTAttention(config, layer_idx=layer_idx)
        self.ln_2 = ImageGPTLayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        if config.add_cross_attention:
            self.crossattention = ImageGPTAttention(config, is_cross_attention=True, layer_idx=layer_idx)
            self.ln_cross_attn = ImageGPTLayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = ImageGPTMLP(config)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Call `forward`, with gradient checkpointing if it is enabled and gradients are computed."""
        # Before 5.24 transformers checkpoints without gradients too, and drops the cache.
        call = super().__call__ if torch.is_grad_enabled() else partial(nn.Module.__call__, self)
        return call(*args, **kwargs)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Apply the block to the residual stream (B, T, C); arguments as in `ImageGPTAttention`."""
        h = hidden_states
        h = h + self.attn(self.ln_1(h), past_key_values, attention_mask, head_mask, **kwargs)[0]
        if encoder_hidden_states is not None:
            kwargs = {**kwargs, "encoder_hidden_states": encoder_hidden_states}
            h = h + self.crossattention(self.ln_cross_attn(h), past_key_values, encoder_attention_mask, **kwargs)[0]
        return h + self.mlp(self.ln_2(h))
