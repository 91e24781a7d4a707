"""The step in torch's operations, on any device: blocks as they are, with hooks, adapters or weights somewhere else.

Keys and values have room for whole images, allocated once and written in place. A position is written when its pixel is
fed and seen by its own and later queries only, so what a wrong draft left there is overwritten before it is seen.

Axes: B images, P pixels of a prompt, n positions fed at once, S positions of the cache that are looked at, H heads,
D head width, V colours.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from imagegpt.model.attention.cached import cached_attention
from imagegpt.model.attention.reference import eager_attention_forward
from imagegpt.model.layers import ImageGPTAttention
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.sampling.backends.base import StepBackend

_BUCKET = 64  # positions by which the part that attention reads grows
_OURS = ("sdpa", "kernels")  # which `cached_attention` stands in for
_WITHOUT_MASKS = ("flash", "flex", "paged")  # words in the names of backends that take no mask of booleans


class _LayerCache:
    """The cache as a block sees it while it runs: writes what is new, gives what is looked at."""

    def __init__(self, keys: Tensor, values: Tensor, positions: Tensor, num_seen: int) -> None:
        self._stored, self._positions, self._num_seen = (keys, values), positions, num_seen

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """What transformers' caches do."""
        images = torch.arange(len(keys), device=keys.device).unsqueeze(1)
        for stored, new in zip(self._stored, (keys, values), strict=True):
            stored[images, :, self._positions] = new.transpose(1, 2).to(stored.dtype)
        seen_keys, seen_values = (stored[:, :, : self._num_seen] for stored in self._stored)
        return seen_keys, seen_values


class TorchStep(StepBackend):
    """See `StepBackend`.

    Args:
        model: prepared or not, on any device.
        capacity: most rows.
        num_pixels: of whole images.
        cache_dtype: of keys and values.
    Raises: ValueError if the model's attention cannot be computed with a cache.
    """

    def __init__(
        self, model: ImageGPTForCausalImageModeling, capacity: int, num_pixels: int, cache_dtype: torch.dtype
    ) -> None:
        super().__init__(model.config.num_colors)
        self._attention = attention_of(model)
        self._transformer, self._lm_head = model.transformer, model.lm_head
        self._device = device_of(model.transformer.wte, model.device)
        self._last = num_pixels - 1
        self._keys, self._values = [], []
        for module in model.modules():
            if isinstance(module, ImageGPTAttention):
                shape = (capacity, len(module.kept_heads), rounded(num_pixels), module.head_dim)
                device = device_of(module, self._device)
                # Zeros, not whatever was there: a masked position counts nothing, unless it is not a number.
                self._keys.append(torch.zeros(shape, dtype=cache_dtype, device=device))
                self._values.append(torch.zeros(shape, dtype=cache_dtype, device=device))

    def admit(self, row: int, prompt: Int64[Tensor, " p"]) -> None:
        """See `StepBackend`. A prompt is read alone, so that it does not depend on others how that is rounded."""
        if not len(prompt):
            return
        tokens = torch.cat([torch.tensor([self.num_colors]), prompt[:-1].cpu()]).to(self._device)
        positions = torch.arange(len(prompt), device=self._device)
        self._run(tokens.view(1, -1), positions.view(1, -1), slice(row, row + 1), rounded(len(prompt)))

    def step(
        self, tokens: Int64[Tensor, "b n"], positions: Int64[Tensor, "b n"], rows: Sequence[int], longest: int
    ) -> Float32[Tensor, "b n v"]:
        """See `StepBackend`. Rows that are not asked for are fed, too, so that shapes are always the same."""
        capacity = len(self._keys[0])
        if len(rows) == capacity:
            return self._logits(tokens, positions, rounded(longest))
        chosen = torch.tensor(rows, device=self._device)
        every_token = tokens.new_full((capacity, tokens.shape[1]), 0)
        every_position = positions.new_full(every_token.shape, self._last)  # written again before it is seen
        every_token[chosen], every_position[chosen] = tokens, positions
        return self._logits(every_token, every_position, rounded(longest))[chosen]

    def release(self, row: int) -> None:
        """See `StepBackend`. Its place is written again before it is seen."""

    @property
    def cache_bytes(self) -> int:
        """See `StepBackend`."""
        return sum(tensor.nbytes for tensor in (*self._keys, *self._values))

    def _logits(self, tokens: Tensor, positions: Tensor, num_seen: int) -> Tensor:
        hidden = self._run(tokens, positions, slice(None), num_seen)
        return self._lm_head(self._transformer.ln_f(hidden)).float()

    def _run(self, tokens: Tensor, positions: Tensor, rows: slice, num_seen: int) -> Tensor:
        """Carry tokens through the blocks."""
        hidden = self._transformer.wte(tokens) + self._transformer.wpe(positions)
        slots = torch.arange(num_seen, device=tokens.device)
        mask = (slots <= positions.unsqueeze(-1)).unsqueeze(1)
        for block, keys, values in zip(self._transformer.h, self._keys, self._values, strict=True):
            here = positions.to(keys.device)
            hidden = block(
                hidden,
                past_key_values=_LayerCache(keys[rows], values[rows], here, num_seen),
                attention_mask=mask.to(keys.device),
                attn_implementation=self._attention,
            )
        return hidden


def attention_of(model: ImageGPTForCausalImageModeling) -> Any:
    """The function that computes a model's attention over a cache: its own backend, if that takes a mask.

    Raises: ValueError if it does not.
    """
    name = model.config._attn_implementation or "eager"
    if name in _OURS:
        return cached_attention
    if any(word in name for word in _WITHOUT_MASKS):
        raise ValueError(
            f"the model's attention is {name!r}, which cannot look at a part of a cache: load it with "
            "attn_implementation='sdpa', or use its generate()"
        )
    function = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
    return functools.partial(_in_one_dtype, function)


def _in_one_dtype(
    function: Any, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any
) -> Any:
    return function(module, query, key.to(query.dtype), value.to(query.dtype), *args, **kw)


def rounded(length: int) -> int:
    """Positions to look at, to see so many: whole buckets."""
    return -(-length // _BUCKET) * _BUCKET


def device_of(module: nn.Module, otherwise: torch.device) -> torch.device:
    """Where a module computes: where its weights are, or where a hook of accelerate brings them."""
    hook = getattr(module, "_hf_hook", None)
    place = getattr(hook, "execution_device", None)
    if place is not None:
        return torch.device(place)
    devices = {parameter.device for parameter in module.parameters()} - {torch.device("meta")}
    return next(iter(devices), otherwise)
