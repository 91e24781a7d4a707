"""Folders of training runs: the recipe, the record of the data, and checkpoints with a manifest."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import ClassVar

import torch

from imagegpt.data.identity import DataRecord
from imagegpt.data.loading import open_data
from imagegpt.training.checkpoint import Checkpoints
from imagegpt.training.distributed import DistributedContext
from imagegpt.training.ema import ExponentialMovingAverage
from imagegpt.training.optimizers import build_optimizers
from imagegpt.training.recipe_io import parse_recipe_yaml
from imagegpt.training.run_folder import check_folder

from .cases import Kind
from .formats import damage_safetensors
from .model_folders import tiny_model
from .mutations import damage_json
from .recipes import SMALL_RECIPE, damage_yaml

_ALONE = DistributedContext(torch.device("cpu"))


class Runs(Kind):
    """Training runs to resume: damaged checkpoints are skipped."""

    name = "runs"
    num_cases = 500
    first_parser = "every .json is JSON"
    has_manifest = True
    imports = ("imagegpt.training.run_folder", "imagegpt.data.loading", "imagegpt.training.optimizers")
    formats: ClassVar = {".json": damage_json, ".safetensors": damage_safetensors, ".yaml": damage_yaml}

    def prepare(self) -> None:
        """Train on digits for two steps."""
        recipe, case_folder = parse_recipe_yaml(SMALL_RECIPE, "the recipe"), self.folder / "digits"
        case_folder.mkdir()
        (case_folder / "recipe.yaml").write_text(recipe.to_yaml())
        open_data(recipe.data).record.write(case_folder)
        model, optimizers, average = _state()
        progress = {"step": 2, "tokens": 10, "losses": [1.0, 2.0], "random": {"seed": 1}}
        Checkpoints(case_folder / "checkpoints", _ALONE, 1).save(2, model, optimizers, average, progress)

    def passes_first_parser(self, case_folder: Path) -> bool:
        """See `first_parser`."""
        for path in case_folder.rglob("*.json"):
            json.loads(path.read_bytes())
        return True

    def open(self, case_folder: Path) -> str:
        """Open the folder as `train` does, and load the newest undamaged checkpoint."""
        recipe = parse_recipe_yaml(SMALL_RECIPE, "the recipe")
        check_folder(case_folder, recipe)
        record = DataRecord.read(case_folder)
        if record is not None:
            record.differences(dataclasses.replace(record, classes=["x"]))
            record.differences(record)
        checkpoints = Checkpoints(case_folder / "checkpoints", _ALONE, 1)
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
    """A model, its optimisers and its averaged weights, as in a run."""
    model = tiny_model()
    optimizers = build_optimizers(model, parse_recipe_yaml(SMALL_RECIPE, "the recipe").training)
    return model, optimizers, ExponentialMovingAverage(model, 0.5).weights
