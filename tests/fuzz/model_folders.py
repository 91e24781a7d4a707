"""Model folders: configuration, palette and weights in every format that transformers writes."""

import hashlib
import json
import struct
from pathlib import Path
from typing import ClassVar

import torch

from imagegpt import (
    ColorPalette,
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTImageProcessor,
)
from imagegpt.checkpoints.listing import list_tensors
from imagegpt.checkpoints.loading import load_config, load_model, load_processor

from .cases import Kind
from .formats import damage_npy, damage_pickled, damage_safetensors
from .mutations import damage_json

_CLASSES = {"classes": ImageGPTForImageClassification}
_MAX_PIXELS = 64  # larger models are not run


class ModelFolders(Kind):
    """Our models and their processors."""

    name = "models"
    num_cases = 2_000
    first_parser = "every .json is JSON, and the header of every .safetensors is, too"
    imports = (
        "imagegpt",
        "imagegpt.checkpoints.listing",
        "imagegpt.checkpoints.loading",
        "transformers.safetensors_conversion",
    )
    formats: ClassVar = {
        ".json": damage_json,
        ".safetensors": damage_safetensors,
        ".npy": damage_npy,
        ".bin": damage_pickled,
    }

    def prepare(self) -> None:
        """Write models in one file, sharded and pickled; a BERT model; a classifier; a palette only."""
        causal = tiny_model()
        save(causal, self.folder / "whole")
        save(causal, self.folder / "two-files", max_shard_size="40KB")
        save(tiny_model(is_causal=False), self.folder / "bert")
        labels = {0: "cat", 1: "dog", 2: "[bold]"}
        save(tiny_model(ImageGPTForImageClassification, id2label=labels), self.folder / "classifier")
        save(causal, self.folder / "pickled")
        (self.folder / "pickled" / "model.safetensors").unlink()
        torch.save(causal.state_dict(), self.folder / "pickled" / "pytorch_model.bin")
        save(causal, self.folder / "bare-palette")
        (self.folder / "bare-palette" / "preprocessor_config.json").unlink()
        ColorPalette.grey(10).save(self.folder / "bare-palette" / "kmeans_centers.npy")

    def passes_first_parser(self, case_folder: Path) -> bool:
        """See `first_parser`."""
        for path in case_folder.glob("*.json"):
            json.loads(path.read_bytes())
        for path in case_folder.glob("*.safetensors"):
            content = path.read_bytes()
            json.loads(content[8 : 8 + struct.unpack_from("<Q", content)[0]])
        return True

    def open(self, case_folder: Path) -> str:
        """Load everything strictly, list the weights, and run the model once."""
        config = load_config(case_folder)
        load_processor(case_folder, config)
        model = load_model(case_folder, _CLASSES.get(config.head, ImageGPTForCausalImageModeling))
        digest = hashlib.sha256()
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        assert list_tensors(str(case_folder))
        if config.n_positions <= _MAX_PIXELS:
            with torch.no_grad():
                model(torch.zeros(1, config.n_positions, dtype=torch.long))
        return digest.hexdigest()


def tiny_model(model_class: type = ImageGPTForCausalImageModeling, **options):
    """A random model of 4 x 4 pixels and 10 grey levels."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return model_class(ImageGPTConfig(**{**sizes, **options}))


def save(model, folder: Path, **options) -> None:
    """Write a model and its processor."""
    model.save_pretrained(folder, **options)
    ImageGPTImageProcessor(ColorPalette.grey(10), size=4).save_pretrained(folder)
