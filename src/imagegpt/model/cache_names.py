"""Two names for one thing: what transformers called `past_key_values` is `cache` since 5.24.

Our models take either, and return what the installed transformers expects.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from transformers.masking_utils import create_causal_mask

CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"


def takes_either_name(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method whose argument is `past_key_values` be called with `cache` as well."""

    @wraps(forward)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "cache" in kwargs:
            cache = kwargs.pop("cache")
            if cache is not None and kwargs.get("past_key_values") is not None:
                raise ValueError("cache and past_key_values were both given: they are one argument, drop either")
            if cache is not None:
                kwargs["past_key_values"] = cache
        return forward(self, *args, **kwargs)

    return call
