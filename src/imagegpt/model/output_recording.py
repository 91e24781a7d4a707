"""Recording of hidden states and attentions during a forward pass: transformers' own, the same in every version.

Since 5.23 transformers takes `output_hidden_states` as indices into all hidden states, negative ones included. Before,
it takes them as indices into the outputs of the blocks, and no negative ones.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from transformers.utils import output_capturing

SELECTS_STATES = hasattr(output_capturing, "resolve_hidden_states_indices")


def record_outputs(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Let a body's `forward` return the hidden states and attentions that the caller or the config asks for."""
    recorded = output_capturing.capture_outputs(forward)
    return recorded if SELECTS_STATES else _select_states(recorded)


def _select_states(recorded: Callable[..., Any]) -> Callable[..., Any]:
    """Record all hidden states where indices are given, and replace those that were not asked for by None."""

    @wraps(recorded)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        wanted = kwargs.get("output_hidden_states", getattr(self.config, "output_hidden_states", False))
        if isinstance(wanted, bool) or not wanted:
            return recorded(self, *args, **kwargs)
        return_dict = kwargs.get("return_dict", getattr(self.config, "return_dict", True))
        outputs = recorded(self, *args, **{**kwargs, "output_hidden_states": True, "return_dict": True})
        states = outputs["hidden_states"]
        indices = [wanted] if isinstance(wanted, int) else wanted
        kept = {i % len(states) for i in indices if -len(states) <= i < len(states)}
        outputs["hidden_states"] = tuple(state if i in kept else None for i, state in enumerate(states))
        return outputs.to_tuple() if return_dict is False else outputs

    return call
