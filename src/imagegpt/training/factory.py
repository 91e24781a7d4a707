"""Making the model that a recipe asks for, and turning what became of it into files."""

import shutil
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from imagegpt.checkpoints.loading import check_fit, find_folder, load_config, load_model, load_processor
from imagegpt.checkpoints.saving import save_folder
from imagegpt.config import ImageGPTConfig
from imagegpt.files.atomic import sync
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.model.base import ImageGPTPreTrainedModel
from imagegpt.model.modeling import ImageGPTForCausalImageModeling, ImageGPTForImageClassification
from imagegpt.model.sinusoidal_init import start_as_waves
from imagegpt.training.data import Data
from imagegpt.training.joint_model import GeneratorAndClassifier
from imagegpt.training.lora import adapter_rank, add_adapters, check_adapters
from imagegpt.training.memory_estimate import check_weights
from imagegpt.training.objectives import Autoregressive, Bert, Classification, Joint, JointBert, Loss
from imagegpt.training.recipe import ObjectiveRecipe, Recipe

SAVING = ".imagegpt.saving"  # a folder in that of a model, for the files of a new one until all are written

_OBJECTIVES = {
    "autoregressive": Autoregressive,
    "bert": Bert,
    "classification": Classification,
    "joint": Joint,
    "joint-bert": JointBert,
}


def build_loss(recipe: Recipe, data: Data) -> Loss:
    """The model of a recipe together with its objective; fresh weights depend on the recipe's seed alone.

    Raises: ValueError or OSError, in one sentence, if model, data and objective do not fit together.
    """
    objective = recipe.objective
    if objective.needs_labels and data.classes is None:
        raise ValueError(
            f"objective.name is {objective.name!r}, and the images of data.train = {data.name} have no labels: put "
            "them into a folder for each class, or choose autoregressive or bert"
        )
    if objective.needs_labels and data.untrained_classes:
        raise ValueError(
            f"{data.name} has no image of {data.untrained_classes[0]} to train on, broken ones and those held out left "
            "aside: a class needs some, add images, hold out a smaller share, or drop the class"
        )
    torch.manual_seed(recipe.training.seed)
    generator = _generator(recipe, data)
    _choose_attention(generator, recipe.training.attention)
    if recipe.model.lora_rank:
        check_adapters()
        add_adapters(generator.transformer, recipe.model.lora_rank)
        generator.lm_head.requires_grad_(False)
    if not objective.needs_labels:
        return Loss(generator, _objective(objective))
    assert data.classes is not None
    config = _with_classes(generator.config, data.classes, shift_inputs=recipe.model.shift_inputs)
    classifier = ImageGPTForImageClassification(config)
    if objective.name in ("joint", "joint-bert"):
        return Loss(GeneratorAndClassifier(generator, classifier), _objective(objective))
    classifier.transformer = generator.transformer
    return Loss(classifier, _objective(objective))


def rebuilt(weights: dict[str, Tensor], model: nn.Module) -> ImageGPTPreTrainedModel:
    """A model of its own around weights, which are not copied; adapters are added to the weights.

    Args:
        weights: by the names of `model`.
        model: what kind it is; in place of one with both heads the classifier is built.
    """
    kind: Any = type(model)
    if isinstance(model, GeneratorAndClassifier):
        kind = ImageGPTForImageClassification
        weights = {name: weight for name, weight in weights.items() if not name.startswith("lm_head.")}
    rank = adapter_rank(cast(Any, model).transformer)
    with torch.device("meta"):
        empty = kind(model.config)
        adapters = add_adapters(empty.transformer, rank) if rank else None
    empty.load_state_dict(weights, assign=True)
    if adapters is not None:
        adapters.merge_and_unload(safe_merge=True)  # on a copy of the weights
        empty.requires_grad_(True)
    return empty.eval()


def save_model(weights: dict[str, Tensor], model: nn.Module, processor: ImageGPTImageProcessor, folder: Path) -> None:
    """Write a model as transformers does, with its processor; each file is there whole or not at all.

    Args:
        weights: of the model, by its names.
        model: see `rebuilt`.
        processor: goes along.
        folder: is there; one process at a time may save into it.
    Raises: OSError if it cannot be written; the files that are there stay.
    """
    making = folder / SAVING
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    try:
        save_folder(rebuilt(weights, model), processor, making)
        mode = (making / "config.json").stat().st_mode  # safetensors alone writes files that only their owner may read
        # The weights come last: where they are, everything that belongs to them is.
        files = sorted(making.iterdir(), key=lambda path: path.suffix == ".safetensors")
        for file in files:
            file.chmod(mode)
            sync(file)
        for file in files:
            file.replace(folder / file.name)
        making.rmdir()
        sync(folder)
    finally:  # of what is left after an error
        shutil.rmtree(making, ignore_errors=True)


def _generator(recipe: Recipe, data: Data) -> ImageGPTForCausalImageModeling:
    wants_causal = not recipe.objective.hides_pixels
    if recipe.model.pretrained is None:
        sizes = {"num_colors": data.palette.num_colors, "num_pixels": data.num_pixels}
        config = recipe.model.config(**sizes, is_causal=wants_causal)
        check_weights(config)
        fresh = ImageGPTForCausalImageModeling(config)
        if recipe.model.embeddings == "waves":
            start_as_waves(fresh, torch.tensor(data.palette.clusters), data.size)
        return fresh
    folder = find_folder(recipe.model.pretrained)
    config = load_config(folder)
    check_fit(config, data.processor, where=f"the data {data.name}")
    own = load_processor(folder, config).palette
    if own is not None and own != data.palette:
        raise ValueError(
            f"the model {recipe.model.pretrained} has another palette than the data {data.name}: encode them with "
            f"--palette {recipe.model.pretrained}"
        )
    if config.is_causal != wants_causal and not recipe.model.change_attention:
        kinds = {True: "causal", False: "bidirectional"}
        raise ValueError(
            f"the model {recipe.model.pretrained} is {kinds[config.is_causal]}, and objective.name = "
            f"{recipe.objective.name!r} needs a {kinds[wants_causal]} one: choose another, or set "
            "model.change_attention=true to use its weights otherwise"
        )
    model = load_model(folder, is_causal=wants_causal)
    for name, value in recipe.model.options().items():
        if name.endswith("pdrop"):
            _set_dropout(model, name, value)
    reads_start_token = recipe.model.shift_inputs or not recipe.objective.needs_labels
    if config.is_causal and wants_causal and not reads_start_token:
        _align_positions(model)
    return model


@torch.no_grad()
def _align_positions(model: ImageGPTForCausalImageModeling) -> None:
    """Give a classifier without the start token the positions of pre-training: there pixel t stood at t + 1."""
    positions = cast(Any, model.transformer).wpe.weight
    positions[:-1] = positions[1:].clone()


def _choose_attention(model: ImageGPTForCausalImageModeling, name: str) -> None:
    try:
        model.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"training.attention is {name!r}, which cannot run here ({reason}): choose sdpa") from error


def _set_dropout(model: ImageGPTForCausalImageModeling, name: str, value: float) -> None:
    """Dropout is the run's, not that of the run which made the weights."""
    setattr(model.config, name, value)
    transformer: Any = model.transformer
    if name == "embd_pdrop":
        transformer.drop.p = value
        return
    if name == "resid_pdrop":  # that of the attention weights is read from the configuration
        for block in transformer.h:
            block.attn.resid_dropout.p = block.mlp.dropout.p = value


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


def _objective(recipe: ObjectiveRecipe) -> Any:
    options = {
        "bert": {"mask_probability": recipe.mask_probability},
        "joint": {"generative_weight": recipe.generative_weight},
        "joint-bert": {
            "mask_probability": recipe.mask_probability,
            "generative_weight": recipe.generative_weight,
        },
    }
    return _OBJECTIVES[recipe.name](**options.get(recipe.name, {}))
