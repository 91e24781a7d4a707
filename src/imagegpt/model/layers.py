"""The arithmetic of ImageGPT: norm, projection, attention, MLP, block.

From "Generative Pretraining from Pixels" (Chen et al., 2020); weights are named and laid out as in transformers.
A GPT-2 block with two differences: the norm only scales (no mean is subtracted, there is no bias), and the activation
is x * sigmoid(1.702 x). Dropout aside, a block computes

    h = h + attention(norm_1(h))
    h = h + mlp(norm_2(h))

Axes: B images, T positions of the queries, S positions of the keys, H heads, D head width, C channels.
"""

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

    Source: the original code, whose docstring speaks of centring; it does not centre, and `nn.LayerNorm` would load
    these weights, run, and be wrong. Sums of squares are in float32 (in float16, 300^2 overflows), and so is the weight
    of a norm made in half precision, as transformers loads it; `model.half()` casts all, as torch's does.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=at_least_float32(torch.get_default_dtype())))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise (..., C); the result has the input's dtype."""
        wide = at_least_float32(hidden_states.dtype)
        x, weight = hidden_states.to(wide), self.weight.to(wide)
        return functional.rms_norm(x, weight.shape, weight, self.eps).to(hidden_states.dtype)

    def extra_repr(self) -> str:
        """Size and epsilon, for `print(model)`."""
        return f"{self.weight.shape[0]}, eps={self.eps}"


class Projection(Conv1D):
    """An affine map x @ weight + bias, the weight stored (in, out) as OpenAI stored it, the bias optional.

    A subclass of transformers' `Conv1D`, so that peft, quantisers and the like know how the weight lies.
    """

    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(out_features, in_features)
        if not bias:
            self.bias = None

    @property
    def in_features(self) -> int:
        """Inputs, by the name `nn.Linear` gives them."""
        return self.nx

    @property
    def out_features(self) -> int:
        """Outputs, by the name `nn.Linear` gives them."""
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
        # As silu(1.702 x) / 1.702, which takes one pass where the formula takes three. In float16 1.702 x would be
        # infinite from 38,497 on, and its gradient not a number.
        wide = x.float() if x.dtype == torch.float16 else x
        return functional.silu(wide * _SIGMOID_FACTOR).mul_(1 / _SIGMOID_FACTOR).to(x.dtype)


class ImageGPTAttention(nn.Module):
    """Multi-head attention over the pixels so far, or over an encoder's output (`is_cross_attention`)."""

    def __init__(self, config: ImageGPTConfig, is_cross_attention: bool = False, layer_idx: int = 0) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_cross_attention = is_cross_attention
        self.is_causal = config.is_causal and not is_cross_attention  # read by transformers' backends
        self.reorder_and_upcast_attn = config.reorder_and_upcast_attn
        self.head_dim = config.n_embd // config.n_head
        # Original indices of the heads that are left: pruning removes some, and a head mask names them all.
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
            past_key_values: keys and values seen before; the new ones are added to it.
            attention_mask: in the form the backend wants.
            head_mask: (n_head,), by the heads' original indices.
            encoder_hidden_states: (B, S, C), for cross-attention.
            attn_implementation: the backend, by name or as a function like `eager_attention_forward`; None means the
                config's.
            kwargs: passed to the backend.
        Returns: the output, and the weights (B, H, T, S) where the backend gives them.
        """
        if self.is_cross_attention:
            query = self._split_heads(self.q_attn(hidden_states))
            key, value = self._encoder_keys_and_values(cast(Tensor, encoder_hidden_states), past_key_values)
        else:
            query, key, value = (self._split_heads(part) for part in self.c_attn(hidden_states).chunk(3, dim=-1))
            if past_key_values is not None:
                paired = isinstance(past_key_values, EncoderDecoderCache)
                cache = past_key_values.self_attention_cache if paired else past_key_values
                key, value = cache.update(key, value, self.layer_idx)
        if head_mask is not None:
            kwargs["head_mask"] = head_mask[self.kept_heads]
        kwargs["is_causal"] = self.is_causal  # the caller's may be the self-attention's

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
        """Keys and values of the encoder's output: computed for the first pixel, taken from the cache after that.

        Only an `EncoderDecoderCache` has a place for them. In any other cache they would be appended to the block's
        own keys, so there they are computed anew.
        """
        paired = cache if isinstance(cache, EncoderDecoderCache) else None
        if paired is not None and paired.is_updated.get(self.layer_idx):
            layer = cast(Any, paired.cross_attention_cache.layers[self.layer_idx])
            return layer.keys, layer.values
        key, value = (self._split_heads(part) for part in self.c_attn(encoder_hidden_states).chunk(2, dim=-1))
        if paired is not None:
            key, value = paired.cross_attention_cache.update(key, value, self.layer_idx)
            paired.is_updated[self.layer_idx] = True
        return key, value


class ImageGPTMLP(nn.Module):
    """Widen, apply the activation, narrow."""

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
    """Attention and MLP, each on the normed stream and added to it; cross-attention between them if configured."""

    def __init__(self, config: ImageGPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.ln_1 = ImageGPTLayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = ImageGPTAttention(config, layer_idx=layer_idx)
        self.ln_2 = ImageGPTLayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        if config.add_cross_attention:
            self.crossattention = ImageGPTAttention(config, is_cross_attention=True, layer_idx=layer_idx)
            self.ln_cross_attn = ImageGPTLayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = ImageGPTMLP(config)

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
        """Carry the stream (B, T, C) through the block; arguments as in `ImageGPTAttention`."""
        attended, _ = self.attn(self.ln_1(hidden_states), past_key_values, attention_mask, head_mask, **kwargs)
        hidden_states = hidden_states + attended
        if encoder_hidden_states is not None:
            attended, _ = self.crossattention(
                self.ln_cross_attn(hidden_states),
                past_key_values,
                encoder_attention_mask,
                encoder_hidden_states=encoder_hidden_states,
                **kwargs,
            )
            hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.ln_2(hidden_states))
