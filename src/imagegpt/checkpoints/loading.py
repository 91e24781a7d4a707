"""Loading a model and its processor by name, strictly: what does not fit is an error, never a warning.

transformers' `from_pretrained` fills missing weights with random numbers and says so in a log. Here that, and every
other way in which a folder can be wrong, is one sentence.
"""

import os
from pathlib import Path
from typing import Any, TypeVar, Unpack, cast

import torch

from imagegpt.checkpoints.hub import HubOptions, fetch
from imagegpt.checkpoints.registry import CONFIG_FILE, resolve
from imagegpt.config import EXTENDED_MODEL_TYPE, ImageGPTConfig
from imagegpt.files.config_json import read_config
from imagegpt.files.schemas import naming
from imagegpt.files.untrusted import check_config
from imagegpt.images.palette import PALETTE_FILE, PROCESSOR_FILE, ColorPalette
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.model.loading_checks import check_folder
from imagegpt.model.modeling import ImageGPTForCausalImageModeling, ImageGPTPreTrainedModel
from imagegpt.model.weight_files import WEIGHT_FILES

Model = TypeVar("Model", bound=ImageGPTPreTrainedModel)


def find_folder(name: str | os.PathLike[str], *, weights: bool = True, **hub: Unpack[HubOptions]) -> Path:
    """The folder with the files of a model; those on the hub are fetched first, if they are not here already.

    Args:
        name: see `imagegpt.checkpoints.registry.resolve`.
        weights: False fetches the configuration and the palette only.
        **hub: how to fetch, see `HubOptions`; of no consequence for what is on this machine, but for `revision`.
    Raises: ValueError if the name stands for nothing, or a revision is given for a model that is not on the hub;
        ConnectionError if files have to be fetched and cannot be.
    """
    source = resolve(name)
    if source.folder is None:
        return fetch(source.name, weights=weights, **hub)
    revision = hub.get("revision")
    if revision is not None:
        raise ValueError(f"revision {revision!r} was given for {source.name!r}, which is not on the hub: leave it out")
    return source.folder


def load_config(folder: Path) -> ImageGPTConfig:
    """Read the architecture from a folder's `config.json`.

    Raises: FileNotFoundError if there is none; ValueError if it is damaged, describes another kind of model, or asks
        for code from elsewhere.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG_FILE}: give a folder that save_pretrained has written")
    fields = read_config(path)
    model_type = fields.get("model_type")
    if model_type not in (ImageGPTConfig.model_type, EXTENDED_MODEL_TYPE):
        raise ValueError(f"{path} describes a model of type {model_type!r:.80}: this package loads 'imagegpt' only")
    with naming(str(path)):
        check_config(fields)
        return ImageGPTConfig.from_dict(fields)


def load_model(
    folder: Path,
    model_class: type[Model] = ImageGPTForCausalImageModeling,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    is_causal: bool | None = None,
) -> Model:
    """Load a model whose weights fit exactly, in evaluation mode.

    Args:
        folder: as `save_pretrained` writes it, ours or transformers'.
        model_class: one of ours.
        dtype: of the weights; the norms stay in float32 under half precision.
        device: where to.
        is_causal: None is as the folder says; another makes a bidirectional model of a causal one, or the other way,
            whose weights were learnt for something else.
    Raises: FileNotFoundError if a file is missing; ValueError, naming them, if weights are missing, left over or of
        another shape, or a file is damaged.
    """
    config = load_config(folder)
    if is_causal is not None:
        config.is_causal = is_causal
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        raise FileNotFoundError(f"{folder} holds no weights: expected {WEIGHT_FILES[0]} in it")
    check_folder(folder, config)
    model, report = cast(
        tuple[Model, dict[str, Any]],
        model_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused below
        ),
    )
    _check_report(folder, model_class, report)
    return cast(Model, model.to(cast(Any, device)).eval())


def load_processor(folder: Path, config: ImageGPTConfig) -> ImageGPTImageProcessor:
    """Load the processor that belongs to a model, and see that they fit.

    Args:
        folder: with `preprocessor_config.json`, or else `kmeans_centers.npy`, OpenAI's palette, for square images.
        config: of the model.
    Raises: FileNotFoundError without a palette; ValueError if file and model do not fit.
    """
    path = folder / PROCESSOR_FILE
    if path.is_file():
        processor = ImageGPTImageProcessor.from_json_file(path)
        path_of_palette = path
    else:
        path_of_palette = folder / PALETTE_FILE
        if not path_of_palette.is_file():
            raise FileNotFoundError(f"{folder} holds no palette: expected {PROCESSOR_FILE} or {PALETTE_FILE} in it")
        side = round(config.n_positions**0.5)
        processor = ImageGPTImageProcessor(ColorPalette.load(path_of_palette), size=side)
    check_fit(config, processor, where=str(path_of_palette))
    return processor


def check_fit(config: ImageGPTConfig, processor: ImageGPTImageProcessor, *, where: str = "the processor") -> None:
    """See that a processor makes the ids and the image size its model takes.

    Args:
        config: of the model.
        processor: its processor.
        where: what to call the processor in an error.
    Raises: ValueError if there is no palette, or numbers of colours or of pixels differ.
    """
    if processor.palette is None:
        raise ValueError(f"{where} has no palette: give it the colours (clusters) the model was trained with")
    if processor.palette.num_colors != config.num_colors:
        raise ValueError(
            f"{where} has {processor.palette.num_colors} colours, the model {config.num_colors} (vocab_size "
            f"{config.vocab_size} is colours and start token): use the palette the model was trained with"
        )
    height, width = processor.size["height"], processor.size["width"]
    if height * width != config.n_positions:
        raise ValueError(
            f"{where} makes images of {height} x {width} = {height * width} pixels, the model has "
            f"{config.n_positions} positions: set its size to the model's"
        )


def _check_report(folder: Path, model_class: type, report: dict[str, Any]) -> None:
    mismatched = [f"{name} is {list(found)}, not {list(wanted)}" for name, found, wanted in report["mismatched_keys"]]
    faults = {
        "missing": sorted(report["missing_keys"]),
        "left over": sorted(report["unexpected_keys"]),
        "of another shape": sorted(mismatched),
    }
    told = [
        f"{len(names)} {what} ({', '.join(f'{name:.80}' for name in names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in faults.items()
        if names
    ]
    if told:
        raise ValueError(
            f"the weights in {folder} do not fit its {CONFIG_FILE} and {model_class.__name__}: {'; '.join(told)}"
        )
