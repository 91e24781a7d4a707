"""A tiny world to train in: 24 images of 4 x 4 pixels in 16 colours, each a shifted row of all colours."""

import numpy as np
import torch

from helpers import tiny_config
from imagegpt import ImageGPTForCausalImageModeling
from imagegpt.training.checkpoint import Checkpoints
from imagegpt.training.dataloader import Share, Steps
from imagegpt.training.distributed import World
from imagegpt.training.objectives import Autoregressive, Loss, autoregressive_loss
from imagegpt.training.recipe_io import parse_recipe
from imagegpt.training.trainer import Trainer

STRIPES = (torch.arange(16).repeat(24, 1) + torch.arange(24)[:, None]) % 16
ALONE = World(torch.device("cpu"))


class StripeImages:
    """The stripes as a source of images; the class of each is its first colour modulo 4."""

    def __len__(self):
        return len(STRIPES)

    def read(self, indices, generators):
        ids = STRIPES.numpy()[indices]
        return ids, ids[:, 0] % 4


def make_recipe(**changes):
    """A recipe for stripes; changes are sections of fields."""
    content = {
        "model": {"n_layer": 2, "n_embd": 32, "n_head": 4},
        "data": {"train": "stripes"},
        "training": {"num_steps": 12, "batch_size": 8, "warmup_steps": 2, "average_decay": 0.5, "precision": "float32"},
        "watch": {"validate_every": 5},
    }
    for section, fields in changes.items():
        content[section] = {**content.get(section, {}), **fields}
    return parse_recipe(content)


def make_loss(**config):
    """The same fresh model whenever it is called."""
    torch.manual_seed(7)
    model = ImageGPTForCausalImageModeling(tiny_config(**{"init_scheme": "openai", "resid_pdrop": 0.1, **config}))
    return Loss(model, Autoregressive())


def make_trainer(recipe=None, *, folder=None, loss=None, images=None, validate=None, **callbacks):
    """A trainer on stripes, which validates with the first four of them."""
    recipe, loss = recipe or make_recipe(), loss or make_loss()
    training = recipe.training
    share = Share(batch_size=training.batch_size, micro_batch=training.micro_batch)

    def held_out():
        with torch.no_grad():
            return {"total": autoregressive_loss(loss.model, STRIPES[:4]).item()}

    return Trainer(
        loss,
        recipe,
        ALONE,
        Steps(images or StripeImages(), share, training.seed),
        validate=validate or held_out,
        checkpoints=None if folder is None else Checkpoints(folder, ALONE, recipe.watch.keep_checkpoints),
        **callbacks,
    )


def weights_of(model):
    """A copy of all weights, by name."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def same_weights(a, b):
    """Whether two models, or what `weights_of` gave, have the same bits."""
    a, b = (one if isinstance(one, dict) else weights_of(one) for one in (a, b))
    return a.keys() == b.keys() and all(weight.equal(b[name]) for name, weight in a.items())


def stop_after(step):
    """For `should_stop`, together with `on_step`: true from a step on."""
    reached = []
    return {"on_step": lambda told: reached.append(told.step), "should_stop": lambda: step in reached}


def no_generators(num):
    """One for each image."""
    return [np.random.default_rng(0)] * num
