"""Check that a training run fits into memory, by a lower bound.

Weights, gradients, optimiser states and averaged weights are counted exactly; of the activations only what every
implementation keeps for the backward pass, so that nothing is refused that would have worked.

Letters: B images at a time, T pixels, C width, V colours.
"""

from torch import nn

from imagegpt.common.memory import check_memory, format_bytes
from imagegpt.config import ImageGPTConfig
from imagegpt.model import cost
from imagegpt.training.distributed import DistributedContext
from imagegpt.training.recipe import Recipe

_FLOAT32 = 4
_ACTIVATION_WIDTHS = 8  # of a block, in C: queries, keys, values, attention's output, and the 4 C inside the MLP
_WORKER_BYTES = 150_000_000  # of a data loader process: torch alone


def check_weights(config: ImageGPTConfig) -> None:
    """Check that there is memory for a new model, before it is built.

    Raises: ValueError, in one sentence, if not.
    """
    num = cost.num_parameters(config)
    check_memory(f"a model of {num:,} parameters", _FLOAT32 * num, "choose fewer blocks or a smaller width")


def activation_bytes(config: ImageGPTConfig, images: int, *, bytes_per_number: int, checkpointing: bool) -> int:
    """Return the bytes kept for the backward pass: a few numbers per block and position, and the logits in float32."""
    kept = (1 if checkpointing else _ACTIVATION_WIDTHS) * config.n_layer * config.n_embd
    return images * config.n_positions * (kept * bytes_per_number + config.num_colors * _FLOAT32)


def check_training(model: nn.Module, config: ImageGPTConfig, recipe: Recipe, context: DistributedContext) -> None:
    """Check that there is host memory to train a model. A GPU raises its own error when its memory does not suffice.

    Raises: ValueError, in one sentence that names fields to change, if not.
    """
    workers = recipe.data.num_workers * _WORKER_BYTES
    check_memory(f"data.num_workers = {recipe.data.num_workers}", workers, "choose fewer")
    if context.device.type != "cpu":
        return
    training = recipe.training
    images = training.micro_batch_size or -(-training.batch_size // context.world_size)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    weights = _FLOAT32 * trained * (3 if training.ema_decay is None else 4)  # gradients, two moments, average
    size = 2 if training.precision == "bfloat16" else _FLOAT32
    checkpointing = training.gradient_checkpointing
    activations = activation_bytes(config, images, bytes_per_number=size, checkpointing=checkpointing)
    check_memory(
        f"training with {images:,} images at a time ({format_bytes(activations)}) and {trained:,} weights",
        weights + activations,
        "choose a smaller training.micro_batch_size (or training.batch_size), training.gradient_checkpointing, or a "
        "smaller model",
    )
