"""transformers' caches of keys and values, as the models use them.

transformers renamed the argument `past_key_values` to `cache` in 5.24. Our models accept both names and return the
one that the installed version expects. They also accept the tuples of transformers 4.
"""

import copy
import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, cast

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_causal_mask

from imagegpt.config import ImageGPTConfig
from imagegpt.model.tracing import can_read_values

CACHE_ARGUMENT = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"

LegacyCache = tuple[tuple[Tensor, Tensor], ...]  # one (key, value) pair per block


def accept_either_cache_argument(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method whose second argument is `past_key_values` be called with `cache` as well.

    The new signature names both, because transformers and peft inspect it. If both are given and only one holds
    positions, that one is used: peft passes its prefix as one while the model has created an empty cache as the other.
    """

    @wraps(forward)
    def call(self: Any, *args: Any, cache: Any = None, **kwargs: Any) -> Any:
        if cache is None:
            return forward(self, *args, **kwargs)
        other = args[1] if len(args) > 1 else kwargs.get("past_key_values")
        if other is not None and other is not cache:
            if has_cached_positions(cache) == has_cached_positions(other):
                raise ValueError("cache and past_key_values were both given: they are one argument, drop either")
            cache = cache if has_cached_positions(cache) else other
        if len(args) > 1:
            return forward(self, args[0], cache, *args[2:], **kwargs)
        return forward(self, *args, **{**kwargs, "past_key_values": cache})

    signature = inspect.signature(forward)
    *named, rest = signature.parameters.values()
    named.append(inspect.Parameter("cache", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Cache | None))
    call.__signature__ = signature.replace(parameters=[*named, rest])  # type: ignore[attr-defined]
    return call


def prepare_cache(
    past_key_values: Cache | LegacyCache | None,
    config: ImageGPTConfig,
    use_cache: bool | None,
    *,
    is_checkpointing: bool,
) -> Cache | None:
    """Return the cache for one forward pass: the caller's, or a new one if `use_cache` asks for it.

    Args:
        past_key_values: the caller's; tuples are wrapped in a `DynamicCache`.
        is_checkpointing: whether this pass uses gradient checkpointing, which recomputes blocks and so cannot cache.
    Raises: ValueError for a cache that this model or this pass cannot use.
    """
    if has_cached_positions(past_key_values) and not config.is_causal:
        raise ValueError(
            "past_key_values was given to a bidirectional model (is_causal=False), in which earlier pixels see "
            "later ones: feed all pixels at once"
        )
    if past_key_values is not None and is_checkpointing:
        raise ValueError("past_key_values was given while gradient checkpointing: turn one of the two off")
    if isinstance(past_key_values, (tuple, list)):
        if len(past_key_values) not in (0, config.n_layer):
            raise ValueError(
                f"past_key_values has {len(past_key_values)} pairs: give one for each of {config.n_layer} blocks"
            )
        return DynamicCache([(key, value) for key, value in past_key_values])
    cache = past_key_values
    if cache is None and use_cache and config.is_causal:
        cache = DynamicCache(config=config)
    needs_encoder_cache = use_cache and config.add_cross_attention
    if cache is not None and needs_encoder_cache and not isinstance(cache, EncoderDecoderCache):
        cache = EncoderDecoderCache(cache, DynamicCache(config=config))
    return cache


def num_cached_positions(cache: Any) -> int | None:
    """Return the number of positions in a cache, 0 without a cache; None if only the device knows it."""
    length = cache.get_seq_length() if cache is not None else 0
    if isinstance(length, Tensor):
        return int(length) if can_read_values(length) else None
    return length


def has_cached_positions(past_key_values: Any) -> bool:
    """Whether a cache of any kind, tuples included, holds at least one position."""
    if isinstance(past_key_values, Cache):
        return num_cached_positions(past_key_values) != 0
    return bool(past_key_values)


def snapshot_lengths(cache: Cache) -> Cache:
    """Return a copy of a cache whose lengths no longer change; keys and values are not copied.

    The mask of flex_attention is a function that runs during attention. By then a static cache has counted the new
    positions in place, and the mask would let every query see one empty slot too many (a bug of transformers' models).
    """
    snapshot = copy.copy(cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache)
    snapshot.layers = [copy.copy(layer) for layer in snapshot.layers]
    for layer in cast(Any, snapshot.layers):
        if isinstance(getattr(layer, "cumulative_length", None), Tensor):
            layer.cumulative_length = layer.cumulative_length.clone()
    return snapshot


def to_legacy_cache(cache: Any) -> LegacyCache:
    """Return the (key, value) pairs of a cache, one per block, as transformers 4 did."""
    return tuple((layer.keys, layer.values) for layer in cache.layers)
