"""Folders as transformers writes them from OpenAI's checkpoints and from older folders, and back."""

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from imagegpt.checkpoints.loading import load_config, load_model, load_processor
from imagegpt.checkpoints.openai import OpenAIModel, from_openai, to_openai
from imagegpt.checkpoints.registry import MODEL_CARD
from imagegpt.checkpoints.saving import save_folder
from imagegpt.checkpoints.tensor_bundle import TensorBundle, read_bundle, shard_path, write_bundle
from imagegpt.config import ImageGPTConfig
from imagegpt.files.atomic import final_name
from imagegpt.files.checksums import sha256_of
from imagegpt.files.locks import locked_name
from imagegpt.images.palette import ColorPalette
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.model.modeling import ImageGPTForCausalImageModeling, ImageGPTForImageClassification

CLASSIFIER = "classifier"  # the folder beside the weights, where a checkpoint has a head for classes

_CARD = """---
library_name: imagegpt
tags: [imagegpt]
---
# {title}

{kind}: {config.n_layer} blocks, width {config.n_embd}, {config.n_head} heads, {config.n_positions} pixels in
{config.num_colors} colours, {parameters:,} parameters{step}.

Converted from a checkpoint of OpenAI's code by `{command}` on {date}. No number was changed{biases}.

| file | bytes | SHA-256 |
|---|---|---|
{files}
"""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was found in a checkpoint.

    Attributes:
        config: of the model.
        num_parameters: of it.
        step: updates that were made, if it is known.
        num_classes: of its head for classes, 0 if there is none.
        ignored: variables that are not the model's.
    """

    config: ImageGPTConfig
    num_parameters: int
    step: int | None
    num_classes: int
    ignored: list[str] = field(default_factory=list)


def convert_openai(
    prefix: Path,
    out: Path,
    *,
    palette: ColorPalette,
    objective: Literal["ar", "bert"] | None = None,
    biases: bool = False,
    command: str = "imagegpt convert openai",
) -> Converted:
    """Turn a checkpoint of OpenAI's code into a folder that loads like any other.

    Args:
        prefix: of its files, without `.index`.
        out: an empty folder.
        palette: the colours it was trained with.
        objective: what it was trained for; None takes what its variables say, another answer than theirs is refused.
        biases: give the projections biases of zeros, so that transformers' ImageGPT loads it without a warning.
        command: for the card.
    Raises: ValueError or OSError, in one sentence, if it is damaged, of another model, or does not fit the palette.
    """
    bundle = read_bundle(prefix)
    found = from_openai(bundle, biases=biases)
    config, kind = found.config, "ar" if found.config.is_causal else "bert"
    if objective not in (None, kind):
        why = {
            "ar": "it has a start token, model/sos, as autoregressive ones have",
            "bert": "it has no start token, model/sos",
        }
        raise ValueError(
            f"{prefix} is no checkpoint for the objective {objective!r}: {why[kind]}, use --objective {kind}"
        )
    if palette.num_colors != config.num_colors:
        raise ValueError(
            f"the palette has {palette.num_colors} colours and {prefix} {config.num_colors}: give the one that it was "
            "trained with"
        )
    side = round(config.n_positions**0.5)
    if side**2 != config.n_positions:
        raise ValueError(f"{prefix} has {config.n_positions} positions, which is no square image")
    processor = ImageGPTImageProcessor(palette, size=side)
    _save(ImageGPTForCausalImageModeling, config, found.weights, processor, out)
    if found.classifier is not None:
        _save_classifier(found, processor, out / CLASSIFIER)
    converted = Converted(
        config=config,
        num_parameters=sum(weight.numel() for weight in found.weights.values()),
        step=found.step,
        num_classes=0 if found.classifier is None else len(found.classifier),
        ignored=found.ignored,
    )
    (out / MODEL_CARD).write_text(_card(bundle, converted, command), encoding="utf-8")
    return converted


def convert_folder(folder: Path, out: Path) -> ImageGPTConfig:
    """Write a folder of transformers, of any age, as one of today: safetensors, one file, a processor, all settings.

    Args:
        folder: with `model.safetensors`, whole or sharded, or `pytorch_model.bin`, of float32 or half precision.
        out: an empty folder.
    Raises: ValueError or OSError, in one sentence, if something is missing, damaged or does not fit.
    """
    config = load_config(folder)
    processor = load_processor(folder, config)
    classify = any("Classification" in name for name in config.architectures or ())
    kind: Any = ImageGPTForImageClassification if classify else ImageGPTForCausalImageModeling
    stored = getattr(config, "dtype", None) or torch.float32
    save_folder(load_model(folder, kind, dtype=stored), processor, out)
    return config


def export_openai(folder: Path, prefix: Path, *, num_shards: int = 1) -> list[str]:
    """Write a model as a checkpoint that OpenAI's code reads.

    Args:
        folder: of the model.
        prefix: of the files to write.
        num_shards: data files.
    Returns: the names of the variables.
    Raises: ValueError, in one sentence, for what their code cannot compute, or if another process writes the same;
        OSError if it cannot be written.
    """
    model = load_model(folder)
    variables = to_openai(model.config, model.state_dict())
    own = re.compile(rf"{re.escape(prefix.name)}\.(index|data-\d{{5}}-of-\d{{5}})")
    with locked_name(prefix):
        for path in prefix.parent.iterdir():  # what a process that was killed left half written
            if final_name(path.name) != path.name and own.fullmatch(final_name(path.name)):
                path.unlink()
        write_bundle(prefix, variables, num_shards)
    return sorted(variables)


def _save(
    kind: Any, config: ImageGPTConfig, weights: dict[str, Tensor], processor: ImageGPTImageProcessor, out: Path
) -> None:
    with torch.device("meta"):
        model = kind(config)
    model.load_state_dict(weights, assign=True)
    save_folder(model, processor, out)


def _save_classifier(found: OpenAIModel, processor: ImageGPTImageProcessor, out: Path) -> None:
    assert found.classifier is not None
    config = ImageGPTConfig.from_dict(
        {**found.config.to_dict(), "num_labels": len(found.classifier), "shift_inputs": True}
    )
    weights = {name: weight for name, weight in found.weights.items() if not name.startswith("lm_head.")}
    _save(ImageGPTForImageClassification, config, {**weights, "score.weight": found.classifier}, processor, out)


def _card(bundle: TensorBundle, converted: Converted, command: str) -> str:
    prefix = bundle.prefix
    paths = [prefix.with_name(prefix.name + ".index")]
    paths += [shard_path(prefix, shard, bundle.num_shards) for shard in range(bundle.num_shards)]
    rows = [f"| {path.name} | {path.stat().st_size:,} | {sha256_of(path)} |" for path in paths]
    causal = converted.config.is_causal
    return _CARD.format(
        title=f"ImageGPT from {prefix.name}",
        kind="Autoregressive" if causal else "Bidirectional (BERT)",
        config=converted.config,
        parameters=converted.num_parameters,
        step="" if converted.step is None else f", after {converted.step:,} updates",
        command=command,
        date=time.strftime("%Y-%m-%d"),
        biases="; the biases, which the original has not, are zero" if converted.config.use_bias else "",
        files="\n".join(rows),
    )
