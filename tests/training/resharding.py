"""Started by torchrun in `test_checkpoints_resharded`: each process has its shards of a model.

resharding.py save PARALLEL FOLDER        saves them
resharding.py load PARALLEL FOLDER OTHER  loads the checkpoint of the one folder and saves it in the other
"""

import sys
from pathlib import Path

from imagegpt.training.checkpoint import Checkpoints
from imagegpt.training.distributed import World, joined_world
from imagegpt.training.optimizers import AveragedWeights, build_optimizers
from imagegpt.training.parallelism import prepare
from stripes import make_loss, make_recipe


def state(world: World, parallel: str, updates: int):
    """What a checkpoint holds after so many updates, which are functions of the weights alone.

    There are 5 colours and sos: shards of 6 rows differ in size, and of 4 processes the last has none of them.
    """
    recipe = make_recipe(training={"parallel": parallel, "attention": "sdpa"})
    loss = make_loss(vocab_size=6, n_positions=9)
    prepare(loss, recipe.training, world)
    optimizers, average = build_optimizers(loss.model, recipe.training), AveragedWeights(loss.model, 0.5)
    for step in range(updates):
        for weight in loss.model.parameters():
            weight.grad = weight.detach().sin()
        for optimizer in optimizers:
            optimizer.step()
        average.update(step)
    return loss.model, optimizers, average.weights


def main() -> None:
    action, parallel, *folders = sys.argv[1:]
    with joined_world("cpu") as world:
        first, last = (Checkpoints(Path(folder), world, 1) for folder in (folders[0], folders[-1]))
        mine = state(world, parallel, updates=2 if action == "save" else 0)
        if action == "load":
            path = first.newest()
            assert path is not None
            assert first.load(path, *mine) == {"step": 2}
        last.save(2, *mine, {"step": 2})


if __name__ == "__main__":
    main()
