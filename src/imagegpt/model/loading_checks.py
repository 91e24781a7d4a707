"""Whether the weights that were loaded have the shapes that a configuration asks for."""

from collections.abc import Callable
from typing import Any


class ShapeError(ValueError, RuntimeError):
    """Weights of another shape than the model's; transformers raises a RuntimeError for it."""


def load_with_checked_shapes(from_pretrained: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call transformers' `from_pretrained`, and say in one sentence which weights do not fit.

    Raises: ShapeError if weights have other shapes, unless `ignore_mismatched_sizes` asks to draw them anew.
    """
    ignores = kwargs.pop("ignore_mismatched_sizes", False)
    wants_report = kwargs.pop("output_loading_info", False)
    model, report = from_pretrained(*args, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs)
    wrong = [] if ignores else sorted(report["mismatched_keys"])
    if wrong:
        shapes = ", ".join(f"{name} is {tuple(found)}, not {tuple(wanted)}" for name, found, wanted in wrong[:3])
        rest = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ShapeError(
            f"the weights do not fit the configuration: {shapes}{rest}; correct its sizes (vocab_size counts the "
            "colours and the start token), or give ignore_mismatched_sizes=True to draw these weights anew"
        )
    return (model, report) if wants_report else model
