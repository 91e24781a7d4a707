"""Conversion of OpenAI checkpoints and older transformers folders to current folders, and export to OpenAI's format."""

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
from imagegpt.checkpoints.tensor_bundle import TensorBundle, index_path, read_bundle, shard_path, write_bundle
from imagegpt.config import ImageGPTConfig
from imagegpt.files.atomic import target_name
from imagegpt.files.checksums import file_sha256
from imagegpt.files.locks import creation_lock
from imagegpt.images.palette import ColorPalette
from imagegpt.images.processor import ImageGPTImageProcessor
from imagegpt.model.modeling import ImageGPTForCausalImageModeling, ImageGPTForImageClassification

CLASSIFIER = "classifier"  # subfolder for the classifier, if a checkpoint has one

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
class ConversionResult:
    """The result of converting an OpenAI checkpoint.

    Attributes:
        step: number of training steps, or None if unknown.
        num_classes: of the classifier, 0 if there is none.
        ignored: names of variables that are not weights.
    """

    config: ImageGPTConfig
    num_parameters: int
    step: int | None
    num_classes: int
    ignored: list[str] = field(default_factory=list)

    @property
    def objective(self) -> Literal["ar", "bert"]:
        """The objective of the checkpoint: "ar" or "bert"."""
        return "ar" if self.config.is_causal else "bert"

    def to_dict(self) -> dict[str, Any]:
        """Return the result for `--json`."""
        names = ("objective", "num_parameters", "step", "num_classes", "ignored")
        return {name: getattr(self, name) for name in names}


def convert_openai(
    prefix: Path,
    out: Path,
    *,
    palette: ColorPalette,
    objective: Literal["ar", "bert"] | None = None,
    biases: bool = False,
    command: str = "imagegpt convert openai",
) -> ConversionResult:
    """Convert a checkpoint of OpenAI's code to a folder that loads here and in transformers.

    Args:
        prefix: of its files, without `.index`.
        out: an empty folder.
        palette: the colours it was trained with.
        objective: the expected objective; None accepts either.
        biases: add biases of zeros to the projections, so that transformers' ImageGPT loads it without a warning.
        command: for the model card.
    Raises: ValueError or OSError, in one sentence, if it is damaged, of another model, has another objective, or does
        not match the palette.
    """
    bundle = read_bundle(prefix)
    model = from_openai(bundle, biases=biases)
    result = ConversionResult(
        config=model.config,
        num_parameters=sum(weight.numel() for weight in model.weights.values()),
        step=model.step,
        num_classes=0 if model.classifier is None else len(model.classifier),
        ignored=model.ignored,
    )
    if objective is not None:
        _check_objective(prefix, result.objective, objective)
    processor = _square_processor(prefix, model.config, palette)
    _save(ImageGPTForCausalImageModeling, model.config, model.weights, processor, out)
    if model.classifier is not None:
        _save_classifier(model, processor, out / CLASSIFIER)
    (out / MODEL_CARD).write_text(_model_card(bundle, result, command), encoding="utf-8")
    return result


def convert_transformers(folder: Path, out: Path) -> ImageGPTConfig:
    """Convert a folder of any transformers version to the current format: one safetensors file, a processor.

    Args:
        folder: with `model.safetensors`, possibly sharded, or `pytorch_model.bin`, in float32 or half precision.
        out: an empty folder.
    Raises: ValueError or OSError, in one sentence, if a file is missing, damaged or inconsistent.
    """
    config = load_config(folder)
    processor = load_processor(folder, config)
    is_classifier = any("Classification" in name for name in config.architectures or ())
    model_class: Any = ImageGPTForImageClassification if is_classifier else ImageGPTForCausalImageModeling
    dtype = getattr(config, "dtype", None) or torch.float32
    save_folder(load_model(folder, model_class, dtype=dtype), processor, out)
    return config


def export_openai(folder: Path, prefix: Path, *, num_shards: int = 1) -> list[str]:
    """Export a model to a checkpoint that OpenAI's code can load.

    Returns: the names of the variables.
    Raises: ValueError, in one sentence, if OpenAI's code does not support the model, or another process writes the same
        checkpoint; OSError if it cannot be written.
    """
    model = load_model(folder)
    variables = to_openai(model.config, model.state_dict())
    ours = re.compile(rf"{re.escape(prefix.name)}\.(index|data-\d{{5}}-of-\d{{5}})")
    with creation_lock(prefix):
        for path in prefix.parent.iterdir():  # temporary files of a killed process
            if target_name(path.name) != path.name and ours.fullmatch(target_name(path.name)):
                path.unlink()
        write_bundle(prefix, variables, num_shards)
    return sorted(variables)


def _check_objective(prefix: Path, actual: str, expected: str) -> None:
    if actual != expected:
        reason = {
            "ar": "it has a start token, model/sos, as autoregressive ones have",
            "bert": "it has no start token, model/sos",
        }[actual]
        raise ValueError(
            f"{prefix} is not a checkpoint for the objective {expected!r}: {reason}, use --objective {actual}"
        )


def _square_processor(prefix: Path, config: ImageGPTConfig, palette: ColorPalette) -> ImageGPTImageProcessor:
    if palette.num_colors != config.num_colors:
        raise ValueError(
            f"the palette has {palette.num_colors} colours and {prefix} {config.num_colors}: give the palette it was "
            "trained with"
        )
    side = round(config.n_positions**0.5)
    if side**2 != config.n_positions:
        raise ValueError(f"{prefix} has {config.n_positions} positions, which is not a square image")
    return ImageGPTImageProcessor(palette, size=side)


def _save(
    model_class: Any, config: ImageGPTConfig, weights: dict[str, Tensor], processor: ImageGPTImageProcessor, out: Path
) -> None:
    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict(weights, assign=True)
    save_folder(model, processor, out)


def _save_classifier(model: OpenAIModel, processor: ImageGPTImageProcessor, out: Path) -> None:
    assert model.classifier is not None
    config = ImageGPTConfig.from_dict(
        {**model.config.to_dict(), "num_labels": len(model.classifier), "shift_inputs": True}
    )
    weights = {name: weight for name, weight in model.weights.items() if not name.startswith("lm_head.")}
    _save(ImageGPTForImageClassification, config, {**weights, "score.weight": model.classifier}, processor, out)


def _model_card(bundle: TensorBundle, result: ConversionResult, command: str) -> str:
    prefix = bundle.prefix
    paths = [index_path(prefix)]
    paths += [shard_path(prefix, shard, bundle.num_shards) for shard in range(bundle.num_shards)]
    rows = [f"| {path.name} | {path.stat().st_size:,} | {file_sha256(path)} |" for path in paths]
    return _CARD.format(
        title=f"ImageGPT from {prefix.name}",
        kind="Autoregressive" if result.config.is_causal else "Bidirectional (BERT)",
        config=result.config,
        parameters=result.num_parameters,
        step="" if result.step is None else f", after {result.step:,} training steps",
        command=command,
        date=time.strftime("%Y-%m-%d"),
        biases="; the biases, which the original does not have, are zero" if result.config.use_bias else "",
        files="\n".join(rows),
    )
