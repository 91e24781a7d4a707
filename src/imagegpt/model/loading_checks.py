"""Checks around transformers' loader: what the files may not ask for, and whether the weights fit the configuration."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from imagegpt.untrusted_files import check_model_files

HEAD = "lm_head.weight"


class ShapeError(ValueError, RuntimeError):
    """Weights of another shape than the model's; transformers raises a RuntimeError for it."""


def load_with_checked_shapes(from_pretrained: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call transformers' `from_pretrained`, and say in one sentence which weights do not fit.

    Raises: ShapeError if weights have other shapes, unless `ignore_mismatched_sizes` asks to draw them anew; ValueError
        if files ask for code from elsewhere, which the arguments do not ask for.
    """
    name = args[0] if args else kwargs.get("pretrained_model_name_or_path")
    for source in (name, kwargs.get("config")):
        if isinstance(source, (str, os.PathLike)):
            check_model_files(source, kwargs)
    ignores = kwargs.pop("ignore_mismatched_sizes", False)
    wants_report = kwargs.pop("output_loading_info", False)
    model, report = from_pretrained(*args, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs)
    wrong = [] if ignores else sorted([*report["mismatched_keys"], *_wrong_head(name, model.config, report)])
    if wrong:
        shapes = ", ".join(f"{name} is {tuple(found)}, not {tuple(wanted)}" for name, found, wanted in wrong[:3])
        rest = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ShapeError(
            f"the weights do not fit the configuration: {shapes}{rest}; correct its sizes (vocab_size counts the "
            "colours and the start token), or give ignore_mismatched_sizes=True to draw these weights anew"
        )
    return (model, report) if wants_report else model


def _wrong_head(folder: Any, config: Any, report: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """The output matrix of a folder whose head is not loaded, into a classifier for one, if it has another shape.

    It tells that weights and configuration do not belong together, though nothing of it is used.
    """
    wanted = (config.num_colors, config.n_embd)
    is_left_aside = HEAD in report["unexpected_keys"]
    if (
        not is_left_aside or not isinstance(folder, (str, os.PathLike)) or not Path(folder).is_dir()
    ):  # a name on the hub
        return []
    found = next((shape for shape in map(_head_shape, sorted(Path(folder).iterdir())) if shape), wanted)
    return [] if found == wanted else [(HEAD, found, wanted)]


def _head_shape(path: Path) -> tuple[int, ...] | None:
    """The shape of the output matrix in a file of weights; None if it is not there."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return tuple(file.get_slice(HEAD).get_shape()) if HEAD in file.keys() else None  # noqa: SIM118
    if path.name.startswith("pytorch_model") and path.suffix == ".bin":
        weights = torch.load(path, map_location="meta", weights_only=True)
        return tuple(weights[HEAD].shape) if HEAD in weights else None
    return None
