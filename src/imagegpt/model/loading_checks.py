"""Checks around transformers' loader: what the files may not ask for, and whether the weights fit the configuration."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.configuration_utils import PreTrainedConfig

from imagegpt.config import ImageGPTConfig
from imagegpt.files.config_json import read_config
from imagegpt.files.schemas import naming
from imagegpt.files.untrusted import check_model_files, first_line
from imagegpt.model import cost
from imagegpt.model.weight_files import ADAPTER_FILES, check_weights, files_of_weights, list_tensors_of

HEAD = "lm_head.weight"

_OTHER_FILES = ("gguf_file", "state_dict", "variant", "quantization_config")  # with these, others are read
_SPARE_PARAMETERS = 1 << 20  # that a model may have and its files lack, such as a head for new classes


class ShapeError(ValueError, RuntimeError):
    """Weights of another shape than the model's; transformers raises a RuntimeError for it."""


def load_with_checked_shapes(from_pretrained: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call transformers' `from_pretrained`, and say in one sentence what is wrong with the files.

    Raises: ShapeError if weights have other shapes, unless `ignore_mismatched_sizes` asks to draw them anew; ValueError
        if files are damaged, do not belong together, or ask for code from elsewhere that the arguments do not ask for.
    """
    name = args[0] if args else kwargs.get("pretrained_model_name_or_path")
    for source in (name, kwargs.get("config")):
        if isinstance(source, (str, os.PathLike)):
            check_model_files(source, kwargs)
    ignores = kwargs.pop("ignore_mismatched_sizes", False)
    if isinstance(name, (str, os.PathLike)) and not any(kwargs.get(key) for key in _OTHER_FILES):
        check_folder(Path(name) / (kwargs.get("subfolder") or ""), None if ignores else _config_for(name, kwargs))
    wants_report = kwargs.pop("output_loading_info", False)
    try:
        model, report = from_pretrained(*args, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs)
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} are damaged or cut short ({error}): get them again") from error
    except Exception as error:
        adapter = Path(name) / "adapter_config.json" if isinstance(name, (str, os.PathLike)) else None
        if isinstance(error, (OSError, ImportError, MemoryError)) or adapter is None or not adapter.is_file():
            raise
        raise ValueError(
            f"{adapter}: the adapter cannot be put on the model ({first_line(error)}): get it again, or remove it"
        ) from error
    wrong = [] if ignores else sorted([*report["mismatched_keys"], *_wrong_head(name, model.config, report)])
    if wrong:
        shapes = ", ".join(f"{name} is {tuple(found)}, not {tuple(wanted)}" for name, found, wanted in wrong[:3])
        rest = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ShapeError(
            f"the weights do not fit the configuration: {shapes}{rest}; correct its sizes (vocab_size counts the "
            "colours and the start token), or give ignore_mismatched_sizes=True to draw these weights anew"
        )
    return (model, report) if wants_report else model


def check_folder(folder: Path, config: ImageGPTConfig | None) -> None:
    """Check the weights of a folder before a model is built for them.

    Args:
        folder: of the model; one that is not there, as for a name on the hub, is left to the loader.
        config: of the model; None compares its size with nothing.
    Raises: ValueError or FileNotFoundError, in one sentence, if files are damaged or missing, or the configuration
        describes a model of more weights than they have bytes.
    """
    paths = files_of_weights(folder)
    check_weights([*paths, *(folder / name for name in ADAPTER_FILES if (folder / name).is_file())])
    held = sum(path.stat().st_size for path in paths)
    if not paths or config is None:
        return
    wanted = cost.num_parameters(config)
    if wanted > held + _SPARE_PARAMETERS:
        raise ValueError(
            f"{folder / 'config.json'} describes a model of {wanted:,} parameters ({config.n_layer} blocks, width "
            f"{config.n_embd}), and its weights have {held:,} bytes: they do not belong together, get both again"
        )


def _config_for(name: Any, given: Mapping[str, Any]) -> ImageGPTConfig | None:
    """The configuration that a model will have; None if it is not in a folder, or the caller's own."""
    if isinstance(given.get("config"), PreTrainedConfig):
        return None
    source = Path(given.get("config") or name)
    path = source if source.is_file() else source / (given.get("subfolder") or "") / "config.json"
    if not path.is_file():
        return None
    options = {key: value for key, value in given.items() if hasattr(ImageGPTConfig, key) and "dtype" not in key}
    options |= {"attn_implementation": "eager"}  # which changes no size
    with naming(str(path)):
        return ImageGPTConfig.from_dict(read_config(path), **options)


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
    if path.suffix == ".safetensors" or (path.name.startswith("pytorch_model") and path.suffix == ".bin"):
        return next((one.shape for one in list_tensors_of(path) if one.name == HEAD), None)
    return None
