"""Capture of hidden states and attentions during a forward pass, on top of transformers' `capture_outputs`.

It works the same with every supported version of transformers. Since 5.23, `output_hidden_states` may be indices into
all hidden states, negative ones included. Before, they are indices into the outputs of the blocks, without negative
ones.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, cast

from transformers.utils import output_capturing

SELECTS_STATES = hasattr(output_capturing, "resolve_hidden_states_indices")


def capture_outputs(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Make `ImageGPTModel.forward` return the hidden states and attentions that the caller or the config asks for."""
    captured = output_capturing.capture_outputs(forward)
    return _drop_empty_cross_attentions(captured if SELECTS_STATES else _select_states(captured))


def _select_states(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Capture all hidden states if indices are given, and replace those not asked for by None."""

    @wraps(forward)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        requested = kwargs.get("output_hidden_states", getattr(self.config, "output_hidden_states", False))
        if isinstance(requested, bool) or not requested:
            return forward(self, *args, **kwargs)
        return_dict = kwargs.get("return_dict", getattr(self.config, "return_dict", True))
        outputs = forward(self, *args, **{**kwargs, "output_hidden_states": True, "return_dict": True})
        states = outputs["hidden_states"]
        indices = [requested] if isinstance(requested, int) else requested
        selected = {i % len(states) for i in indices if -len(states) <= i < len(states)}
        outputs["hidden_states"] = tuple(state if i in selected else None for i, state in enumerate(states))
        return outputs.to_tuple() if return_dict is False else outputs

    return call


def _drop_empty_cross_attentions(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Leave `cross_attentions` out if there is no cross-attention.

    transformers captures them whenever attentions are asked for, and returns an empty tuple instead of None.
    """

    @wraps(forward)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return_dict = kwargs.pop("return_dict", None)
        output = cast(Any, forward(self, *args, return_dict=True, **kwargs))
        if output.cross_attentions is not None and len(output.cross_attentions) == 0:
            output = type(output)(**{name: output[name] for name in output if name != "cross_attentions"})
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    return call
