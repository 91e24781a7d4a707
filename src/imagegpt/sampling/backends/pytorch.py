"""The step in torch, on any device, with the model's own blocks: hooks, adapters and offloaded weights work.

The KV cache is allocated once, with room for whole images, and written in place. A position is written when its token
is fed, and only this and later positions attend to it: entries of wrong drafts are overwritten before they are read.

Axes: B images, P pixels of a prompt, n positions per step, S cached positions, H heads, D head width, V colours.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from imagegpt.model.attention.reference import eager_attention_forward
from imagegpt.model.layers import ImageGPTAttention
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.sampling.backends.base import StepBackend

_BUCKET = 64  # attention reads a multiple of this many cached positions
_REPLACED = ("sdpa", "kernels")  # attention implementations that `_cached_attention` replaces
_WITHOUT_MASKS = ("flash", "flex", "paged")  # in the names of attention implementations that take no boolean mask


class _LayerCache:
    """A layer's cache during a step, with the interface of transformers' caches."""

    def __init__(self, keys: Tensor, values: Tensor, positions: Tensor, length: int) -> None:
        self._cached, self._positions, self._length = (keys, values), positions, length

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Write new keys and values; return those that attention reads."""
        images = torch.arange(len(keys), device=keys.device).unsqueeze(1)
        for cached, new in zip(self._cached, (keys, values), strict=True):
            cached[images, :, self._positions] = new.transpose(1, 2).to(cached.dtype)
        cached_keys, cached_values = (cached[:, :, : self._length] for cached in self._cached)
        return cached_keys, cached_values


class TorchBackend(StepBackend):
    """See `StepBackend`.

    Args:
        model: prepared or not, on any device.
        num_pixels: per image.
        cache_dtype: of keys and values.
    Raises: ValueError if the model's attention does not support the cache.
    """

    def __init__(
        self, model: ImageGPTForCausalImageModeling, capacity: int, num_pixels: int, cache_dtype: torch.dtype
    ) -> None:
        super().__init__(model.config.num_colors)
        self._attention = resolve_attention(model)
        self._transformer, self._lm_head = model.transformer, model.lm_head
        self._device = device_of(model.transformer.wte, model.device)
        self._last_position = num_pixels - 1
        self._keys, self._values = [], []
        for module in model.modules():
            if isinstance(module, ImageGPTAttention):
                shape = (capacity, len(module.kept_heads), round_to_bucket(num_pixels), module.head_dim)
                device = device_of(module, self._device)
                # Zeros, not uninitialised memory: a masked position has weight 0, but 0 * NaN is NaN.
                self._keys.append(torch.zeros(shape, dtype=cache_dtype, device=device))
                self._values.append(torch.zeros(shape, dtype=cache_dtype, device=device))

    def admit(self, row: int, prompt: Int64[Tensor, " p"]) -> None:
        """See `StepBackend`. Each prompt is prefilled by itself, so that its rounding does not depend on others."""
        if not len(prompt):
            return
        tokens = torch.cat([torch.tensor([self.num_colors]), prompt[:-1].cpu()]).to(self._device)
        positions = torch.arange(len(prompt), device=self._device)
        self._run_blocks(tokens.view(1, -1), positions.view(1, -1), slice(row, row + 1), round_to_bucket(len(prompt)))

    def step(
        self, tokens: Int64[Tensor, "b n"], positions: Int64[Tensor, "b n"], rows: Sequence[int], longest: int
    ) -> Float32[Tensor, "b n v"]:
        """See `StepBackend`. All rows are computed, including those not in `rows`, to keep shapes static."""
        capacity = len(self._keys[0])
        if len(rows) == capacity:
            return self._logits(tokens, positions, round_to_bucket(longest))
        row_index = torch.tensor(rows, device=self._device)
        all_tokens = tokens.new_full((capacity, tokens.shape[1]), 0)
        # The other rows write to their last position, which is overwritten before it is read.
        all_positions = positions.new_full(all_tokens.shape, self._last_position)
        all_tokens[row_index], all_positions[row_index] = tokens, positions
        return self._logits(all_tokens, all_positions, round_to_bucket(longest))[row_index]

    def release(self, row: int) -> None:
        """See `StepBackend`. Nothing to do: the next image overwrites the row before reading it."""

    def _logits(self, tokens: Tensor, positions: Tensor, cache_length: int) -> Tensor:
        hidden = self._run_blocks(tokens, positions, slice(None), cache_length)
        return self._lm_head(self._transformer.ln_f(hidden)).float()

    def _run_blocks(self, tokens: Tensor, positions: Tensor, rows: slice, cache_length: int) -> Tensor:
        hidden = self._transformer.wte(tokens) + self._transformer.wpe(positions)
        cached_positions = torch.arange(cache_length, device=tokens.device)
        mask = (cached_positions <= positions.unsqueeze(-1)).unsqueeze(1)
        for block, keys, values in zip(self._transformer.h, self._keys, self._values, strict=True):
            layer_positions = positions.to(keys.device)
            hidden = block(
                hidden,
                past_key_values=_LayerCache(keys[rows], values[rows], layer_positions, cache_length),
                attention_mask=mask.to(keys.device),
                attn_implementation=self._attention,
            )
        return hidden


def resolve_attention(model: ImageGPTForCausalImageModeling) -> Any:
    """The attention function for a cached step: the model's own implementation, if it takes a mask.

    Raises: ValueError if it does not.
    """
    name = model.config._attn_implementation or "eager"
    if name in _REPLACED:
        return _cached_attention
    if any(word in name for word in _WITHOUT_MASKS):
        raise ValueError(
            f"the model's attention is {name!r}, which cannot attend to part of a cache: load the model with "
            "attn_implementation='sdpa', or use its generate()"
        )
    function = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
    return functools.partial(_attend_in_query_dtype, function)


def _cached_attention(
    module: nn.Module,
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b h s d"],
    value: Float[Tensor, "b h s d"],
    attention_mask: Bool[Tensor, "b 1 n s"],
    scaling: float,
    **kwargs: Any,
) -> tuple[Float[Tensor, "b n h d"], None]:
    """Attend in the dtype of the stored keys and values; torch accumulates in float32."""
    mixed = functional.scaled_dot_product_attention(
        query.to(key.dtype), key, value, attn_mask=attention_mask, scale=scaling
    )
    return mixed.transpose(1, 2).to(query.dtype), None


def _attend_in_query_dtype(
    function: Any, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any
) -> Any:
    return function(module, query, key.to(query.dtype), value.to(query.dtype), *args, **kw)


def round_to_bucket(length: int) -> int:
    """Round a number of positions up to whole buckets."""
    return -(-length // _BUCKET) * _BUCKET


def device_of(module: nn.Module, default: torch.device) -> torch.device:
    """The device a module computes on: that of its weights, or the execution device of an accelerate hook."""
    hook = getattr(module, "_hf_hook", None)
    execution_device = getattr(hook, "execution_device", None)
    if execution_device is not None:
        return torch.device(execution_device)
    devices = {parameter.device for parameter in module.parameters()} - {torch.device("meta")}
    return next(iter(devices), default)
