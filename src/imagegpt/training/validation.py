"""The metrics of an objective over a whole data set."""

import numpy as np
import torch
from torch import Tensor

from imagegpt.data import rng
from imagegpt.data.batch import Batch
from imagegpt.data.dataloader import check_labels, ordered_batches
from imagegpt.data.datasets import TokenDataset
from imagegpt.model.eval_mode import eval_mode
from imagegpt.training.distributed import DistributedContext
from imagegpt.training.objectives import ModelWithObjective
from imagegpt.training.parallelism import autocast
from imagegpt.training.recipe import Recipe
from imagegpt.training.trainer_state import Metrics

_BATCH_SIZE = 64
_MASK_STEP = 0  # validation images get the masks of this step, so that they are always the same


@torch.no_grad()
def mean_metrics(
    module: ModelWithObjective, dataset: TokenDataset, recipe: Recipe, context: DistributedContext
) -> Metrics:
    """Return the means of an objective's metrics over a data set, in eval mode and the recipe's precision.

    Args:
        module: the model, possibly sharded, with its objective.
        dataset: to score; the processes share the work.
        recipe: of the run.
        context: its processes, all of which must call this.
    """
    device, seed, masking = context.device, recipe.training.seed, recipe.objective.masking
    sums: dict[str, Tensor] = {}
    with eval_mode(module.model):
        for batch in ordered_batches(dataset, _BATCH_SIZE, context.rank, context.world_size):
            ids, labels = batch.ids, batch.labels
            if recipe.objective.needs_labels:
                check_labels(None if labels is None else labels.numpy())
            masked = None
            if masking is not None:
                positions = np.arange(batch.start, batch.start + len(ids))
                masked = torch.from_numpy(rng.masks(seed, _MASK_STEP, positions, ids.shape[1], masking[0]))
            with autocast(device, recipe.training.precision):
                losses = module(Batch(ids=ids, labels=labels, masked=masked).to(device))
            for name, value in {**losses, "images": torch.ones((), device=device)}.items():
                total = sums.get(name, torch.zeros((), dtype=torch.float64, device=device))
                sums[name] = total + value * batch.num_counted
    totals = dict(zip(sums, context.all_reduce(torch.stack(list(sums.values()))).tolist(), strict=True))
    return {name: total / totals["images"] for name, total in totals.items() if name != "images"}
