"""Prepare a model for training: move it to its device, compile its blocks, replicate or shard its weights.

Many processes compute what one would: each has equally many images, and gradients are averaged over the processes, so
that they equal the mean over the whole batch.

Sharding (FSDP2) never needs the whole model on a device: only the main process initialises or loads the weights, in
host memory, while the others build the model on the meta device. The model is sharded there, memory is allocated for
the shards, and the main process broadcasts one weight after another. So fresh weights are those of a single process,
bit for bit.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from imagegpt.common.precision import choose_precision
from imagegpt.model.attention import kernels
from imagegpt.training.distributed import DistributedContext
from imagegpt.training.objectives import ModelWithObjective
from imagegpt.training.recipe import TrainingRecipe
from imagegpt.training.recipe_fields import PrecisionName


def is_sharded(recipe: TrainingRecipe, context: DistributedContext) -> bool:
    """Return whether a run shards its weights over the processes."""
    return recipe.parallel == "fsdp" and context.world_size > 1


def prepare_model(module: ModelWithObjective, recipe: TrainingRecipe, context: DistributedContext) -> nn.Module:
    """Move a model to its device and wrap it as the recipe says; `module.model` is changed in place.

    Args:
        module: on the CPU. If it is going to be sharded, processes other than the main one may have it on the meta
            device.
        recipe: how to train.
        context: the processes.
    Returns: what to call with a batch.
    """
    transformer: Any = cast(Any, module.model).transformer
    set_checkpointing(transformer, recipe.gradient_checkpointing)
    if recipe.attention == kernels.NAME and context.device.type == "cpu":
        kernels.has_kernels()  # build them before a block is compiled, which would go without
    if recipe.compile:
        for block in transformer.h:
            block.compile()
    if is_sharded(recipe, context):
        _shard(module, transformer, context)
        return module
    module.to(context.device)
    return module if context.world_size == 1 else DistributedDataParallel(module)


def set_checkpointing(transformer: Any, enabled: bool) -> None:
    """Turn gradient checkpointing of a transformer's blocks on or off."""
    # The names that transformers 5.17 knows; 5.23 deprecates them.
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        if enabled:
            transformer.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            transformer.gradient_checkpointing_disable()


def autocast(device: torch.device, precision: PrecisionName) -> torch.autocast:
    """Return the autocast context of a recipe's precision; weights and sums stay in float32."""
    chosen = choose_precision(precision, device).precision
    return torch.autocast(device.type, torch.bfloat16, enabled=chosen == "bfloat16")


@contextmanager
def synchronize_gradients(wrapped: nn.Module, enabled: bool) -> Iterator[None]:
    """Context manager for the passes of a step: exchange gradients in the last one only."""
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(enabled)
        yield
    elif isinstance(wrapped, DistributedDataParallel) and not enabled:
        with wrapped.no_sync():
            yield
    else:
        yield


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Gather the weights of a model in the host memory of the main process; other processes get an empty dict."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    gathered = cast(dict[str, Tensor], get_model_state_dict(model, options=options))
    return {name: weight.detach().cpu() for name, weight in gathered.items()}


def local_tensor(weight: Tensor) -> Tensor:
    """Return this process's shard of a weight, or all of it if it is not sharded, without copying."""
    return cast(Tensor, weight.to_local()) if isinstance(weight, DTensor) else weight


def full_tensor(value: Tensor) -> Tensor:
    """Return the whole of a value that may be sharded."""
    return cast(Tensor, value.full_tensor()) if isinstance(value, DTensor) else value


def _shard(module: ModelWithObjective, transformer: Any, context: DistributedContext) -> None:
    weights = dict(module.model.state_dict()) if context.is_main else {}
    module.to("meta")
    mesh: DeviceMesh = init_device_mesh(context.device.type, (context.world_size,))
    for block in transformer.h:
        fully_shard(block, mesh=mesh)
    # The root holds the embeddings and heads. It is resharded after each forward pass, because averaged weights may be
    # swapped in between two.
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    module.to_empty(device=context.device)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=True)
    set_model_state_dict(module.model, weights, options=options)
