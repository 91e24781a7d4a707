"""Folders of training runs: the recipe, the record of the data, and checkpoints with a manifest."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import ClassVar

import torch

from imagegpt.data.identity import DataRecord
from imagegpt.training.checkpoint import Checkpoints
from imagegpt.training.datasets import open_data
from imagegpt.training.distributed import World
from imagegpt.training.optimizers import AveragedWeights, build_optimizers
from imagegpt.training.recipe_io import recipe_from_text
from imagegpt.training.run_folder import check_folder

from .cases import Kind
from .formats import damage_safetensors
from .model_folders import tiny_model
from .mutations import damage_json
from .recipes import SMALL_RECIPE, damage_yaml

_ALONE = World(torch.device("cpu"))


class Runs(Kind):
    """Runs that are resumed: a checkpoint that is not as it was written is passed over."""

    name = "runs"
    num_cases = 500
    first_parser = "every .json is JSON"
    has_manifest = True
    imports = ("imagegpt.training.run_folder", "imagegpt.training.datasets", "imagegpt.training.optimizers")
    formats: ClassVar = {".json": damage_json, ".safetensors": damage_safetensors, ".yaml": damage_yaml}

    def prepare(self) -> None:
        """A run of digits after two steps."""
        recipe, place = recipe_from_text(SMALL_RECIPE, "the recipe"), self.folder / "digits"
        place.mkdir()
        (place / "recipe.yaml").write_text(recipe.resolved())
        open_data(recipe.data).record.write(place)
        model, optimizers, average = _state()
        progress = {"step": 2, "tokens": 10, "losses": [1.0, 2.0], "random": {"seed": 1}}
        Checkpoints(place / "checkpoints", _ALONE, 1).save(2, model, optimizers, average, progress)

    def passes_first_parser(self, place: Path) -> bool:
        """See `first_parser`."""
        for path in place.rglob("*.json"):
            json.loads(path.read_bytes())
        return True

    def open(self, place: Path) -> str:
        """Look at the folder as `train` does, and load the newest checkpoint that is whole."""
        recipe = recipe_from_text(SMALL_RECIPE, "the recipe")
        check_folder(place, recipe)
        record = DataRecord.read(place)
        if record is not None:
            record.differences(dataclasses.replace(record, classes=["x"]))
            record.differences(record)
        checkpoints = Checkpoints(place / "checkpoints", _ALONE, 1)
        newest = checkpoints.newest()
        if newest is None:
            raise ValueError("no checkpoint is whole")
        model, optimizers, average = _state()
        progress = checkpoints.load(newest, model, optimizers, average)
        digest = hashlib.sha256(json.dumps(progress).encode())
        for name, tensor in sorted({**model.state_dict(), **average}.items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        return digest.hexdigest()


def _state():
    """A model, its optimisers and its average, as a run has them."""
    model = tiny_model()
    optimizers = build_optimizers(model, recipe_from_text(SMALL_RECIPE, "the recipe").training)
    return model, optimizers, AveragedWeights(model, 0.5).weights
