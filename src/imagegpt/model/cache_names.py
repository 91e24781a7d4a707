"""Two names for one thing: what transformers called `past_key_values` is `cache` since 5.24.

Our models take either, and return what the installed transformers expects.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask

from imagegpt.model.input_checks import is_filled

CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"


def takes_either_name(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method whose second argument is `past_key_values` be called with `cache` as well.

    The signature names both, for transformers and peft look there. Where both are given, one that is empty yields to
    one that is filled, as when peft hands a prefix to a model that has made itself an empty cache.
    """

    @wraps(forward)
    def call(self: Any, *args: Any, cache: Any = None, **kwargs: Any) -> Any:
        if cache is None:
            return forward(self, *args, **kwargs)
        other = args[1] if len(args) > 1 else kwargs.get("past_key_values")
        if other is not None and other is not cache:
            if is_filled(cache) == is_filled(other):
                raise ValueError("cache and past_key_values were both given: they are one argument, drop either")
            cache = cache if is_filled(cache) else other
        if len(args) > 1:
            return forward(self, args[0], cache, *args[2:], **kwargs)
        return forward(self, *args, **{**kwargs, "past_key_values": cache})

    signature = inspect.signature(forward)
    *named, rest = signature.parameters.values()
    named.append(inspect.Parameter("cache", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Cache | None))
    call.__signature__ = signature.replace(parameters=[*named, rest])  # type: ignore[attr-defined]
    return call
