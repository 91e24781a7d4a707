"""Objectives, optimisers, schedules and trackers of another package: registered by a decorator, or as entry points."""

import json
import sys
from pathlib import Path

import pytest
import torch
from pydantic.dataclasses import dataclass

from imagegpt.model.losses import autoregressive_loss
from imagegpt.training.api import train
from imagegpt.training.objectives import OBJECTIVES, FinalScores, Objective, register_objective
from imagegpt.training.optimizers import (
    OPTIMIZERS,
    SCHEDULES,
    OptimizerBuilder,
    register_optimizer,
    register_schedule,
)
from imagegpt.training.recipe_fields import STRICT
from imagegpt.training.recipe_io import parse_recipe, parse_recipe_yaml
from imagegpt.training.trackers import TRACKERS, Tracker, register_tracker

RECIPE = {
    "model": {"n_layer": 1, "n_embd": 8, "n_head": 1},
    "data": {"train": "digits"},
    "training": {"num_steps": 2, "warmup_steps": 0, "batch_size": 4, "precision": "float32"},
    "monitoring": {"validate_every": 2, "checkpoint_every": 2, "validation_images": 8, "samples": 0},
}


def recipe(**sections):
    return {name: {**RECIPE.get(name, {}), **sections.get(name, {})} for name in RECIPE | sections}


@pytest.fixture
def registries(monkeypatch):
    """Registries that forget what a test registers."""
    for registry in (OBJECTIVES, OPTIMIZERS, SCHEDULES, TRACKERS):
        monkeypatch.setattr(registry, "_registered", dict(registry._registered))


def register_all(logged):
    """Register one of each kind, as the decorators of another package would."""

    @register_objective
    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Smoothed(Objective):
        name = "smoothed"
        unit = "smoothed nats"

        scale: float = 1.0

        def loss(self, model, batch):
            nats = autoregressive_loss(model, batch.ids)
            return {"loss": self.scale * nats, "nats": nats.detach()}

    @register_optimizer
    class SGDBuilder(OptimizerBuilder):
        name = "sgd"
        description = "SGD"

        @classmethod
        def build(cls, model, recipe):
            return [torch.optim.SGD(model.parameters(), recipe.learning_rate, momentum=0.9)]

    register_schedule("linear")(lambda fraction_left: fraction_left)

    @register_tracker
    class ListTracker(Tracker):
        name = "list"

        def __init__(self, folder, settings):
            logged.append((folder.name, settings["training.optimizer"], settings["objective.scale"]))

        def log(self, metrics, step):
            logged.append((step, metrics))

        def close(self):
            logged.append("closed")


@pytest.mark.usefixtures("registries")
def test_one_of_each_kind_is_registered_and_trained_with(tmp_path):
    logged = []
    register_all(logged)
    result = train(
        recipe(
            objective={"name": "smoothed", "scale": 2.0},
            training={"optimizer": "sgd", "schedule": "linear"},
            monitoring={"trackers": ["list"]},
        ),
        tmp_path / "m",
    )
    assert (result.status, result.steps, result.scores, result.accuracy) == ("completed", 2, (), None)
    lines = [json.loads(line) for line in (tmp_path / "m" / "log.jsonl").read_text().splitlines()]
    assert all(line["metrics"]["loss"] == pytest.approx(2 * line["metrics"]["nats"]) for line in lines)
    assert [line["learning_rate"] for line in lines] == [0.003, 0.0015]
    assert logged[0] == ("m", "sgd", 2.0)
    assert [entry[0] for entry in logged[1:3]] == [1, 2]
    assert logged[2][1]["validation/loss"] == pytest.approx(lines[1]["validation"]["loss"])
    assert logged[3] == "closed"
    card = (tmp_path / "m" / "README.md").read_text()
    assert "smoothed; SGD (" in card
    assert "Validation: " in card
    assert "smoothed nats" in card


@pytest.mark.usefixtures("registries")
def test_a_recipe_checks_the_options_of_a_registered_objective():
    register_all([])
    chosen = parse_recipe(recipe(objective={"name": "smoothed", "scale": "3"}))
    assert chosen.objective == OBJECTIVES.get("smoothed")(scale=3.0)
    assert parse_recipe_yaml(chosen.to_yaml(), "the recipe") == chosen
    with pytest.raises(ValueError, match=r"^objective\.scale is 'much': it must be a valid number"):
        parse_recipe(recipe(objective={"name": "smoothed", "scale": "much"}))
    with pytest.raises(
        ValueError, match=r"^there is no objective\.size in a recipe: objective 'smoothed' has name, scale$"
    ):
        parse_recipe(recipe(objective={"name": "smoothed", "size": 3}))


THEIR_MODULE = """
import torch
from pydantic.dataclasses import dataclass
from imagegpt.model.losses import autoregressive_loss
from imagegpt.training.objectives import Objective
from imagegpt.training.optimizers import OptimizerBuilder
from imagegpt.training.trackers import Tracker

@dataclass(frozen=True, kw_only=True)
class Halved(Objective):
    name = "halved"
    def loss(self, model, batch):
        return {"loss": 0.5 * autoregressive_loss(model, batch.ids)}

class Plain(OptimizerBuilder):
    name = "plain"
    description = "plain SGD"
    @classmethod
    def build(cls, model, recipe):
        return [torch.optim.SGD(model.parameters(), recipe.learning_rate)]

class TextFile(Tracker):
    name = "text-file"
    def __init__(self, folder, settings):
        self.path = folder.parent / "tracked.txt"
    def log(self, metrics, step):
        with self.path.open("a") as file:
            print(step, sorted(metrics), file=file)
"""


@pytest.fixture
def installed_package(tmp_path, monkeypatch):
    """Another package with an objective, an optimiser, a tracker, and a tracker that cannot be imported."""
    info = tmp_path / "their_training-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-training\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[imagegpt.objectives]\nhalved = their_training:Halved\n"
        "[imagegpt.optimizers]\nplain = their_training:Plain\n"
        "[imagegpt.trackers]\ntext-file = their_training:TextFile\nbroken = their_training:Missing\n"
    )
    (tmp_path / "their_training.py").write_text(THEIR_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("their_training", None)


@pytest.mark.usefixtures("installed_package")
def test_entry_points_are_found_and_trained_with(tmp_path):
    result = train(
        recipe(objective={"name": "halved"}, training={"optimizer": "plain"}, monitoring={"trackers": ["text-file"]}),
        tmp_path / "m",
    )
    assert (result.status, result.steps) == ("completed", 2)
    assert 0.5 * 2 < result.best_validation["loss"] < 0.5 * 3
    lines = (tmp_path / "tracked.txt").read_text().splitlines()
    assert lines == [
        "1 ['grad_norm', 'learning_rate', 'train/loss']",
        "2 ['grad_norm', 'learning_rate', 'train/loss', 'validation/loss']",
    ]


@pytest.mark.usefixtures("installed_package")
def test_an_entry_point_that_cannot_be_imported_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"^the tracker 'broken' of their-training cannot be imported") as caught:
        train(recipe(monitoring={"trackers": ["broken"]}), tmp_path / "m")
    assert "\n" not in str(caught.value)
    assert not Path(tmp_path / "m").exists()


def test_an_objective_needs_no_final_scores():
    class Minimal(Objective):
        name = "minimal"

        def loss(self, model, batch):
            return {}

    scores = Minimal().evaluate(Path("m"), None, "test", device="cpu", progress=lambda *_: None)
    assert scores == FinalScores()
    assert Minimal().format_metrics({"loss": 0.6931471805599453, "accuracy": 0.5}) == (
        "0.693 nats/pixel = 1.000 bits/pixel, accuracy 50%"
    )
