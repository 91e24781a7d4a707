"""Build the model that a recipe describes, and save a trained one."""

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from imagegpt.checkpoints.loading import check_processor, find_folder, load_config, load_model, load_processor
from imagegpt.checkpoints.saving import save_folder
from imagegpt.config import ImageGPTConfig
from imagegpt.data.data_splits import DataSplits
from imagegpt.files.atomic import fsync
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.model.modeling import ImageGPTForCausalImageModeling, ImageGPTPreTrainedModel
from imagegpt.model.sinusoidal_init import sinusoidal_init_
from imagegpt.training.lora import adapter_rank, add_adapters, check_adapters
from imagegpt.training.memory_estimate import check_weights
from imagegpt.training.objectives import ModelWithObjective
from imagegpt.training.recipe import Recipe

SAVING = ".imagegpt.saving"  # a subfolder for the files of a new model until all are written


def build_model(recipe: Recipe, data: DataSplits, *, on_meta: bool = False) -> ModelWithObjective:
    """Build the model of a recipe, on the CPU; fresh weights depend on the recipe's seed alone.

    Args:
        recipe: what to train.
        data: what to train it on.
        on_meta: build it on the meta device, without weights, for a process that receives its shards from another.
    Raises: ValueError or OSError, in one sentence, if model, data and objective do not fit together.
    """
    objective = recipe.objective
    if objective.needs_labels:
        _check_classes(recipe, data)
    torch.manual_seed(recipe.training.seed)
    with torch.device("meta") if on_meta else nullcontext():
        model = (
            _fresh_model(recipe, data, on_meta)
            if recipe.model.pretrained is None
            else (_pretrained_model(recipe, recipe.model.pretrained, data, on_meta))
        )
        _choose_attention(model, recipe.training.attention)
        if recipe.model.lora_rank:
            check_adapters()
            add_adapters(model.transformer, recipe.model.lora_rank)
            model.lm_head.requires_grad_(False)
        config = model.config
        if objective.needs_labels:
            assert data.classes is not None
            config = _with_classes(config, data.classes, shift_inputs=recipe.model.shift_inputs)
        return ModelWithObjective(objective.build_model(model, config), objective)


def rebuild_model(weights: dict[str, Tensor], model: nn.Module) -> ImageGPTPreTrainedModel:
    """Build a model around weights, without copying them; LoRA adapters are merged into the weights.

    Args:
        weights: by their names in `model`; those that the new model does not have are left out.
        model: of the same kind; its attribute `saved_class` names the kind to build if it is another.
    """
    kind: Any = getattr(model, "saved_class", type(model))
    rank = adapter_rank(cast(Any, model).transformer)
    with torch.device("meta"):
        empty = kind(model.config)
        adapters = add_adapters(empty.transformer, rank) if rank else None
    names = empty.state_dict().keys()
    empty.load_state_dict({name: weight for name, weight in weights.items() if name in names}, assign=True)
    if adapters is not None:
        adapters.merge_and_unload(safe_merge=True)  # on a copy of the weights
        empty.requires_grad_(True)
    return empty.eval()


def save_model(weights: dict[str, Tensor], model: nn.Module, processor: ImageGPTImageProcessor, folder: Path) -> None:
    """Save a model as transformers does, with its processor; each file is replaced atomically.

    Args:
        weights: of the model, by name.
        model: see `rebuild_model`.
        processor: saved with it.
        folder: an existing one; only one process at a time may save into it.
    Raises: OSError if it cannot be written; the files that exist remain.
    """
    temporary = folder / SAVING
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        save_folder(rebuild_model(weights, model), processor, temporary)
        mode = (temporary / "config.json").stat().st_mode  # safetensors creates files that only their owner can read
        # The weights come last: where they are, everything that belongs to them is.
        files = sorted(temporary.iterdir(), key=lambda path: path.suffix == ".safetensors")
        for file in files:
            file.chmod(mode)
            fsync(file)
        for file in files:
            file.replace(folder / file.name)
        temporary.rmdir()
        fsync(folder)
    finally:  # after an error
        shutil.rmtree(temporary, ignore_errors=True)


def _check_classes(recipe: Recipe, data: DataSplits) -> None:
    """Check that the images have labels, and each class an image to train on."""
    if data.classes is None:
        raise ValueError(
            f"objective.name is {recipe.objective.name!r}, and the images of data.train = {data.name} have no labels: "
            "put them into a folder for each class, or choose autoregressive or bert"
        )
    if data.untrained_classes:
        raise ValueError(
            f"{data.name} has no image of {data.untrained_classes[0]} to train on, apart from broken and held-out "
            "ones: a class needs some, add images, hold out a smaller fraction, or drop the class"
        )


def _fresh_model(recipe: Recipe, data: DataSplits, on_meta: bool) -> ImageGPTForCausalImageModeling:
    sizes = {"num_colors": data.palette.num_colors, "num_pixels": data.num_pixels}
    config = recipe.model.config(**sizes, is_causal=recipe.objective.is_causal)
    if not on_meta:
        check_weights(config)
    model = ImageGPTForCausalImageModeling(config)
    if recipe.model.embedding_init == "sinusoidal" and not on_meta:
        sinusoidal_init_(model, torch.tensor(data.palette.clusters), data.size)
    return model


def _pretrained_model(recipe: Recipe, name: str, data: DataSplits, on_meta: bool) -> ImageGPTForCausalImageModeling:
    folder, objective = find_folder(name), recipe.objective
    config = load_config(folder)
    was_causal = config.is_causal
    _check_pretrained(recipe, name, data, config, folder)
    config.is_causal = objective.is_causal
    for field in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(config, field, getattr(recipe.model, field))
    model = ImageGPTForCausalImageModeling(config) if on_meta else load_model(folder, config=config)
    reads_start_token = recipe.model.shift_inputs or not objective.needs_labels
    if was_causal and objective.is_causal and not reads_start_token and not on_meta:
        _align_positions(model)
    return model


def _check_pretrained(recipe: Recipe, name: str, data: DataSplits, config: ImageGPTConfig, folder: Path) -> None:
    """Check that a pretrained model fits the data and the objective."""
    check_processor(config, data.processor, name=f"the data {data.name}")
    palette, needs_causal = load_processor(folder, config).palette, recipe.objective.is_causal
    if palette is not None and palette != data.palette:
        raise ValueError(
            f"the model {name} has another palette than the data {data.name}: encode them with --palette {name}"
        )
    if config.is_causal != needs_causal and not recipe.model.change_attention:
        kinds = {True: "causal", False: "bidirectional"}
        raise ValueError(
            f"the model {name} is {kinds[config.is_causal]}, and objective.name = {recipe.objective.name!r} needs a "
            f"{kinds[needs_causal]} one: choose another, or set model.change_attention=true to use its weights anyway"
        )


@torch.no_grad()
def _align_positions(model: ImageGPTForCausalImageModeling) -> None:
    """Give a classifier without the start token the positions of pre-training, where pixel t was at t + 1."""
    positions = cast(Any, model.transformer).wpe.weight
    positions[:-1] = positions[1:].clone()


def _choose_attention(model: ImageGPTForCausalImageModeling, name: str) -> None:
    try:
        model.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"training.attention is {name!r}, which cannot run here ({reason}): choose sdpa") from error


def _with_classes(config: ImageGPTConfig, classes: list[str], *, shift_inputs: bool) -> ImageGPTConfig:
    names = dict(enumerate(classes))
    return ImageGPTConfig.from_dict(
        {
            **config.to_dict(),
            "id2label": names,
            "label2id": {name: index for index, name in names.items()},
            "shift_inputs": shift_inputs,
            "problem_type": "single_label_classification",
        }
    )
