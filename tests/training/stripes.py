"""Recipes, models and trainers for `helpers.StripeDataset`."""

from pathlib import Path

import torch

from helpers import STRIPES, StripeDataset, tiny_config
from imagegpt import ImageGPTForCausalImageModeling
from imagegpt.data.dataloader import BatchLayout, TrainingBatches
from imagegpt.model.losses import autoregressive_loss
from imagegpt.training.callbacks import TrainingCallback
from imagegpt.training.checkpoint import Checkpoints
from imagegpt.training.distributed import DistributedContext
from imagegpt.training.objectives import Autoregressive, ModelWithObjective
from imagegpt.training.recipe_io import parse_recipe
from imagegpt.training.trainer import Trainer

ALONE = DistributedContext(torch.device("cpu"))


def make_recipe(**changes):
    """A recipe for stripes; changes are sections of fields."""
    content = {
        "model": {"n_layer": 2, "n_embd": 32, "n_head": 4},
        "data": {"train": "stripes"},
        "training": {"num_steps": 12, "batch_size": 8, "warmup_steps": 2, "ema_decay": 0.5, "precision": "float32"},
        "monitoring": {"validate_every": 5},
    }
    for section, fields in changes.items():
        content[section] = {**content.get(section, {}), **fields}
    return parse_recipe(content)


def make_module(**config):
    """The same fresh model, with the autoregressive objective, whenever it is called."""
    torch.manual_seed(7)
    model = ImageGPTForCausalImageModeling(tiny_config(**{"init_scheme": "openai", "resid_pdrop": 0.1, **config}))
    return ModelWithObjective(model, Autoregressive())


class NoCheckpoints(Checkpoints):
    """Saves nothing, for tests in which nothing is resumed."""

    def __init__(self):
        super().__init__(Path("no checkpoints"), ALONE, 1)

    def save(self, *_):
        pass


def make_trainer(recipe=None, *, folder=None, module=None, dataset=None, validate=None, **callbacks):
    """A trainer on stripes, which validates with the first four of them."""
    recipe, module = recipe or make_recipe(), module or make_module()
    training = recipe.training
    layout = BatchLayout(batch_size=training.batch_size, micro_batch_size=training.micro_batch_size)

    def held_out():
        with torch.no_grad():
            return {"loss": autoregressive_loss(module.model, STRIPES[:4]).item()}

    return Trainer(
        module,
        recipe,
        ALONE,
        TrainingBatches(dataset or StripeDataset(), layout, training.seed),
        validate=validate or held_out,
        checkpoints=NoCheckpoints()
        if folder is None
        else Checkpoints(folder, ALONE, recipe.monitoring.keep_checkpoints),
        **callbacks,
    )


def weights_of(model):
    """A copy of all weights, by name."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def same_weights(a, b):
    """Whether two models, or results of `weights_of`, have the same bits."""
    a, b = (one if isinstance(one, dict) else weights_of(one) for one in (a, b))
    return a.keys() == b.keys() and all(weight.equal(b[name]) for name, weight in a.items())


def stop_after(step):
    """Callbacks that stop a run after a step."""
    reached = []
    return {"on_step": lambda report: reached.append(report.step), "should_stop": lambda: step in reached}


def hooks(**methods):
    """A callback of a run with these methods."""
    callback = TrainingCallback()
    vars(callback).update(methods)
    return callback
