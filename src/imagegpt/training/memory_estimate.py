"""Whether a training run fits the machine, by what it takes at least.

Weights, their gradients, the optimiser's numbers and the running average are exact; of the activations only what every
implementation keeps for the backward pass is counted, so that nothing is refused that would have worked.

Letters: B images at a time, T pixels, C width, V colours.
"""

from torch import nn

from imagegpt.common.memory import check_memory, readable_bytes
from imagegpt.config import ImageGPTConfig
from imagegpt.model import cost
from imagegpt.training.distributed import World
from imagegpt.training.recipe import Recipe

_FLOAT32 = 4
_KEPT_WIDTHS = 8  # of a block, in C: queries, keys, values, what attention gives, and the 4 C inside the MLP
_WORKER_BYTES = 150_000_000  # of a process that prepares batches: torch alone


def check_weights(config: ImageGPTConfig) -> None:
    """See that there is memory for a new model, before it is made.

    Raises: ValueError, in one sentence, if not.
    """
    num = cost.num_parameters(config)
    check_memory(f"a model of {num:,} parameters", _FLOAT32 * num, "choose fewer blocks or a smaller width")


def activation_bytes(config: ImageGPTConfig, images: int, *, bytes_per_number: int, checkpointing: bool) -> int:
    """What is kept for the backward pass at least: a few numbers a block and position, and the logits in float32."""
    kept = (1 if checkpointing else _KEPT_WIDTHS) * config.n_layer * config.n_embd
    return images * config.n_positions * (kept * bytes_per_number + config.num_colors * _FLOAT32)


def check_training(model: nn.Module, config: ImageGPTConfig, recipe: Recipe, world: World) -> None:
    """See that there is memory to train a model as a recipe says. A GPU says itself when its own does not suffice.

    Raises: ValueError, in one sentence that names fields to change, if not.
    """
    workers = recipe.data.num_workers * _WORKER_BYTES
    check_memory(f"data.num_workers = {recipe.data.num_workers}", workers, "choose fewer")
    if world.device.type != "cpu":
        return
    training = recipe.training
    images = training.micro_batch or -(-training.batch_size // world.size)
    learnt = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    weights = _FLOAT32 * learnt * (4 if training.average_decay else 3)  # gradients, two moments, average
    size = 2 if training.precision == "bfloat16" else _FLOAT32
    checkpointing = training.gradient_checkpointing
    activations = activation_bytes(config, images, bytes_per_number=size, checkpointing=checkpointing)
    check_memory(
        f"training with {images:,} images at a time ({readable_bytes(activations)}) and {learnt:,} weights",
        weights + activations,
        "choose a smaller training.micro_batch (or training.batch_size), training.gradient_checkpointing, or a smaller "
        "model",
    )
