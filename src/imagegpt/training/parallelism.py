"""Making a model ready to be trained: on its device, its blocks compiled, its weights copied or sharded.

What one process would compute, many compute together: gradients are means over the processes, each of which has equally
many images, and so equal the mean over the whole batch.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from imagegpt.common.precision import choose_precision
from imagegpt.model.attention import kernels
from imagegpt.training.distributed import World
from imagegpt.training.objectives import Loss
from imagegpt.training.recipe import PrecisionField, TrainingRecipe


def prepare(loss: Loss, recipe: TrainingRecipe, world: World) -> nn.Module:
    """Bring a loss to its device and wrap it as the recipe says; the model in it is changed in place.

    Returns: what to call with a batch.
    """
    loss.to(world.device)
    transformer: Any = cast(Any, loss.model).transformer
    set_checkpointing(transformer, recipe.gradient_checkpointing)
    if recipe.attention == kernels.NAME and world.device.type == "cpu":
        kernels.has_kernels()  # before a block is compiled, which would have to do without
    if recipe.compile:
        for block in transformer.h:
            block.compile()
    if world.size == 1:
        return loss
    if recipe.parallel == "fsdp":
        _shard(loss, transformer, init_device_mesh(world.device.type, (world.size,)))
        return loss
    return DistributedDataParallel(loss)


def set_checkpointing(transformer: Any, enabled: bool) -> None:
    """Choose whether the activations of the blocks of a model's body are computed again for the backward pass."""
    with warnings.catch_warnings():
        # The names that transformers 5.17 knows; 5.23 would rather have others.
        warnings.simplefilter("ignore", FutureWarning)
        if enabled:
            transformer.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            transformer.gradient_checkpointing_disable()


def autocast(device: torch.device, precision: PrecisionField) -> torch.autocast:
    """The arithmetic of a recipe's precision; weights and sums stay in float32."""
    chosen = choose_precision(precision, device).precision
    return torch.autocast(device.type, torch.bfloat16, enabled=chosen == "bfloat16")


@contextmanager
def synchronised(wrapped: nn.Module, is_last: bool) -> Iterator[None]:
    """Forward and backward within it exchange gradients in the last of the passes of a step only."""
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(is_last)
        yield
    elif isinstance(wrapped, DistributedDataParallel) and not is_last:
        with wrapped.no_sync():
            yield
    else:
        yield


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model, gathered from its shards, in the memory of the main process; empty in the others."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    gathered = cast(dict[str, Tensor], get_model_state_dict(model, options=options))
    return {name: weight.detach().cpu() for name, weight in gathered.items()}


def _shard(loss: Loss, transformer: Any, mesh: DeviceMesh) -> None:
    for block in transformer.h:
        fully_shard(block, mesh=mesh)
    # The rest, embeddings and heads, belongs to the root. It is sharded again after each pass, because averaged weights
    # may be put in its place between two.
    fully_shard(loss, mesh=mesh, reshard_after_forward=True)
