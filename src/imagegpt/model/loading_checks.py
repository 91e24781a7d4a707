"""Checks around transformers' loader: do the files request foreign code, and do the weights match the configuration?"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.configuration_utils import PreTrainedConfig

from imagegpt.config import ImageGPTConfig
from imagegpt.files.config_json import read_config
from imagegpt.files.schemas import prefix_errors
from imagegpt.files.untrusted import check_model_files, first_line
from imagegpt.model import cost
from imagegpt.model.weight_files import ADAPTER_FILES, check_weights, find_weight_files, read_tensor_infos

HEAD = "lm_head.weight"

_OTHER_FILES = ("gguf_file", "state_dict", "variant", "quantization_config")  # transformers reads other files then
_MAX_NEW_PARAMETERS = 1 << 20  # of a model that may be missing in its files, such as a head for new classes


class ShapeError(ValueError, RuntimeError):
    """Raised if weights and model differ in shape; transformers raises a RuntimeError."""


def checked_from_pretrained(from_pretrained: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call transformers' `from_pretrained`, and report problems with the files in one sentence.

    Raises: ShapeError if shapes differ, unless `ignore_mismatched_sizes` asks to initialise those weights; ValueError
        if files are damaged, do not belong together, or request foreign code without the caller's permission.
    """
    name = args[0] if args else kwargs.get("pretrained_model_name_or_path")
    for source in (name, kwargs.get("config")):
        if isinstance(source, (str, os.PathLike)):
            check_model_files(source, kwargs)
    ignore_mismatched = kwargs.pop("ignore_mismatched_sizes", False)
    if isinstance(name, (str, os.PathLike)) and not any(kwargs.get(key) for key in _OTHER_FILES):
        config = None if ignore_mismatched else _read_local_config(name, kwargs)
        check_weights_of_folder(Path(name) / (kwargs.get("subfolder") or ""), config)
    output_loading_info = kwargs.pop("output_loading_info", False)
    try:
        model, loading_info = from_pretrained(*args, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs)
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} are damaged or cut short ({error}): get them again") from error
    except Exception as error:
        adapter = Path(name) / "adapter_config.json" if isinstance(name, (str, os.PathLike)) else None
        if isinstance(error, (OSError, ImportError, MemoryError)) or adapter is None or not adapter.is_file():
            raise
        raise ValueError(
            f"{adapter}: the adapter cannot be applied to the model ({first_line(error)}): get it again, or remove it"
        ) from error
    mismatched = [*loading_info["mismatched_keys"], *_mismatched_head(name, model.config, loading_info)]
    if mismatched and not ignore_mismatched:
        mismatched.sort()
        shapes = ", ".join(f"{key} is {tuple(found)}, not {tuple(wanted)}" for key, found, wanted in mismatched[:3])
        rest = f" and {len(mismatched) - 3} more" if len(mismatched) > 3 else ""
        raise ShapeError(
            f"the weights do not match the configuration: {shapes}{rest}; correct its sizes (vocab_size counts the "
            "colours and the start token), or give ignore_mismatched_sizes=True to initialise these weights"
        )
    return (model, loading_info) if output_loading_info else model


def check_weights_of_folder(folder: Path, config: ImageGPTConfig | None) -> None:
    """Check the weights in a folder before a model is built for them.

    Args:
        folder: of the model; if it does not exist, the name is the hub's and is left to the loader.
        config: of the model; None skips the comparison of sizes.
    Raises: ValueError or FileNotFoundError, in one sentence, if files are damaged or missing, or the configuration
        describes a model with more parameters than the files have bytes.
    """
    paths = find_weight_files(folder)
    check_weights([*paths, *(folder / name for name in ADAPTER_FILES if (folder / name).is_file())])
    if not paths or config is None:
        return
    num_bytes, num_parameters = sum(path.stat().st_size for path in paths), cost.num_parameters(config)
    if num_parameters > num_bytes + _MAX_NEW_PARAMETERS:
        raise ValueError(
            f"{folder / 'config.json'} describes a model with {num_parameters:,} parameters ({config.n_layer} blocks, "
            f"width {config.n_embd}), but the weights have only {num_bytes:,} bytes: get both again"
        )


def _read_local_config(name: Any, kwargs: Mapping[str, Any]) -> ImageGPTConfig | None:
    """Read the configuration the model will have; None if it is the caller's object or not in a local folder."""
    if isinstance(kwargs.get("config"), PreTrainedConfig):
        return None
    source = Path(kwargs.get("config") or name)
    path = source if source.is_file() else source / (kwargs.get("subfolder") or "") / "config.json"
    if not path.is_file():
        return None
    options = {key: value for key, value in kwargs.items() if hasattr(ImageGPTConfig, key) and "dtype" not in key}
    options |= {"attn_implementation": "eager"}  # always available, and irrelevant for sizes
    with prefix_errors(str(path)):
        return ImageGPTConfig.from_dict(read_config(path), **options)


def _mismatched_head(folder: Any, config: Any, loading_info: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the generative head as a mismatch if a folder has one of another shape, even if it is not loaded.

    A classifier ignores it, but its shape shows that weights and configuration do not belong together.
    """
    expected = (config.num_colors, config.n_embd)
    is_unused = HEAD in loading_info["unexpected_keys"]
    if not is_unused or not isinstance(folder, (str, os.PathLike)) or not Path(folder).is_dir():  # on the hub
        return []
    found = next((shape for shape in map(_head_shape, sorted(Path(folder).iterdir())) if shape), expected)
    return [] if found == expected else [(HEAD, found, expected)]


def _head_shape(path: Path) -> tuple[int, ...] | None:
    """Return the shape of the generative head in a weight file; None if it has none."""
    if path.suffix == ".safetensors" or (path.name.startswith("pytorch_model") and path.suffix == ".bin"):
        return next((tensor.shape for tensor in read_tensor_infos(path) if tensor.name == HEAD), None)
    return None
