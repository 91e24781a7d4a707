"""Started by torchrun in `test_checkpoints_resharded`: each process has its shards of a model.

resharding.py save PARALLEL FOLDER        saves them
resharding.py load PARALLEL FOLDER OTHER  loads the checkpoint of the one folder and saves it in the other
"""

import sys
from pathlib import Path

from imagegpt.training.checkpoint import Checkpoints
from imagegpt.training.distributed import DistributedContext, distributed_context
from imagegpt.training.ema import ExponentialMovingAverage
from imagegpt.training.optimizers import build_optimizers
from imagegpt.training.parallelism import prepare_model
from stripes import make_module, make_recipe


def state(context: DistributedContext, parallel: str, updates: int):
    """What a checkpoint holds after so many updates, which are functions of the weights alone.

    There are 5 colours and sos: shards of 6 rows differ in size, and of 4 processes the last has none of them.
    """
    recipe = make_recipe(training={"parallel": parallel, "attention": "sdpa"})
    module = make_module(vocab_size=6, n_positions=9)
    prepare_model(module, recipe.training, context)
    optimizers, average = build_optimizers(module.model, recipe.training), ExponentialMovingAverage(module.model, 0.5)
    for step in range(updates):
        for weight in module.model.parameters():
            weight.grad = weight.detach().sin()
        for optimizer in optimizers:
            optimizer.step()
        average.update(step)
    return module.model, optimizers, average.weights


def main() -> None:
    action, parallel, *folders = sys.argv[1:]
    with distributed_context("cpu") as context:
        first, last = (Checkpoints(Path(folder), context, 1) for folder in (folders[0], folders[-1]))
        mine = state(context, parallel, updates=2 if action == "save" else 0)
        if action == "load":
            path = first.newest()
            assert path is not None
            assert first.load(path, *mine) == {"step": 2}
        last.save(2, *mine, {"step": 2})


if __name__ == "__main__":
    main()
