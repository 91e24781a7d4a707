"""Strict loading of a model and its processor by name.

transformers' `from_pretrained` initialises missing weights randomly and logs a warning. Here that, like every other
defect of a folder, is an error of one sentence.
"""

import os
from pathlib import Path
from typing import Any, TypeVar, Unpack, cast

import torch

from imagegpt.checkpoints.hub import HubOptions, download_model
from imagegpt.checkpoints.registry import CONFIG_FILE, find_local_folder
from imagegpt.config import EXTENDED_MODEL_TYPE, ImageGPTConfig
from imagegpt.files.config_json import read_config
from imagegpt.files.schemas import prefix_errors
from imagegpt.files.untrusted import check_config
from imagegpt.images.palette import PALETTE_FILE, PROCESSOR_FILE, ColorPalette
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.model.loading_checks import check_weights_of_folder
from imagegpt.model.modeling import ImageGPTForCausalImageModeling, ImageGPTPreTrainedModel
from imagegpt.model.weight_files import WEIGHT_FILES

Model = TypeVar("Model", bound=ImageGPTPreTrainedModel)


def find_folder(name: str | os.PathLike[str], *, weights: bool = True, **hub: Unpack[HubOptions]) -> Path:
    """Return the folder with a model's files, after downloading them if they are on the hub and not cached.

    Args:
        name: see `imagegpt.checkpoints.registry.find_local_folder`.
        weights: False downloads only the configuration and the palette.
        **hub: see `HubOptions`; ignored for local models, except `revision`.
    Raises: ValueError if there is no such model, or a revision is given for a local model; ConnectionError if files
        cannot be downloaded.
    """
    folder, name = find_local_folder(name), os.fspath(name)
    if folder is None:
        return download_model(name, weights=weights, **hub)
    revision = hub.get("revision")
    if revision is not None:
        raise ValueError(f"revision {revision!r} was given for {name!r}, which is not on the hub: leave it out")
    return folder


def load_config(folder: Path) -> ImageGPTConfig:
    """Load the architecture from a folder's `config.json`.

    Raises: FileNotFoundError if there is none; ValueError if it is damaged, describes another type of model, or refers
        to code outside this package.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} contains no {CONFIG_FILE}: give a folder written by save_pretrained")
    fields = read_config(path)
    model_type = fields.get("model_type")
    if model_type not in (ImageGPTConfig.model_type, EXTENDED_MODEL_TYPE):
        raise ValueError(f"{path} describes a model of type {model_type!r:.80}: this package loads 'imagegpt' only")
    with prefix_errors(str(path)):
        check_config(fields)
        return ImageGPTConfig.from_dict(fields)


def load_model(
    folder: Path,
    model_class: type[Model] = ImageGPTForCausalImageModeling,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    config: ImageGPTConfig | None = None,
) -> Model:
    """Load a model whose weights match exactly, in evaluation mode.

    Args:
        folder: written by `save_pretrained`, ours or transformers'.
        dtype: of the weights; the norms stay in float32 under half precision.
        config: for the model; None uses the folder's. With another `is_causal`, weights trained for the other objective
            serve as initialisation.
    Raises: FileNotFoundError if a file is missing; ValueError, with their names, if weights are missing, unexpected or
        of another shape, or a file is damaged.
    """
    config = load_config(folder) if config is None else config
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        raise FileNotFoundError(f"{folder} contains no weights: expected {WEIGHT_FILES[0]} in it")
    check_weights_of_folder(folder, config)
    model, loading_info = cast(
        tuple[Model, dict[str, Any]],
        model_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `_check_loading_info` refuses them
        ),
    )
    _check_loading_info(folder, model_class, loading_info)
    return cast(Model, model.to(cast(Any, device)).eval())


def load_processor(folder: Path, config: ImageGPTConfig) -> ImageGPTImageProcessor:
    """Load a model's processor, and check that they match.

    Args:
        folder: with `preprocessor_config.json`, or `kmeans_centers.npy`, OpenAI's palette, for square images.
    Raises: FileNotFoundError if there is no palette; ValueError if it is damaged or does not match the model.
    """
    path = folder / PROCESSOR_FILE
    if path.is_file():
        processor = ImageGPTImageProcessor.from_json_file(path)
    else:
        path = folder / PALETTE_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{folder} contains no palette: expected {PROCESSOR_FILE} or {PALETTE_FILE} in it")
        side = round(config.n_positions**0.5)
        processor = ImageGPTImageProcessor(ColorPalette.load(path), size=side)
    check_processor(config, processor, name=str(path))
    return processor


def check_processor(config: ImageGPTConfig, processor: ImageGPTImageProcessor, *, name: str = "the processor") -> None:
    """Check that a processor produces the ids and the image size its model expects.

    Raises: ValueError if there is no palette, or the numbers of colours or pixels differ.
    """
    if processor.palette is None:
        raise ValueError(f"{name} has no palette: give it the colours (clusters) the model was trained with")
    if processor.palette.num_colors != config.num_colors:
        raise ValueError(
            f"{name} has {processor.palette.num_colors} colours, the model {config.num_colors} (vocab_size "
            f"{config.vocab_size} is colours and start token): use the palette the model was trained with"
        )
    height, width = processor.size["height"], processor.size["width"]
    if height * width != config.n_positions:
        raise ValueError(
            f"{name} makes images of {height} x {width} = {height * width} pixels, the model has "
            f"{config.n_positions} positions: set its size to the model's"
        )


def _check_loading_info(folder: Path, model_class: type, loading_info: dict[str, Any]) -> None:
    mismatched = [
        f"{name} is {list(found)}, not {list(expected)}" for name, found, expected in loading_info["mismatched_keys"]
    ]
    problems = {
        "missing": sorted(loading_info["missing_keys"]),
        "unexpected": sorted(loading_info["unexpected_keys"]),
        "of another shape": sorted(mismatched),
    }
    reports = [
        f"{len(names)} {problem} ({', '.join(f'{name:.80}' for name in names[:3])}{', ...' if len(names) > 3 else ''})"
        for problem, names in problems.items()
        if names
    ]
    if reports:
        raise ValueError(
            f"the weights in {folder} do not match its {CONFIG_FILE} and {model_class.__name__}: {'; '.join(reports)}"
        )
