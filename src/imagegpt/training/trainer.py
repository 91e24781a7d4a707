"""The training loop, on plain torch: AdamW, warm-up and cosine, an average of the weights, the best of its moments.

What is random in step s, which images and which units drop out, is a function of (seed, s): nothing else need be
remembered to continue a run, and two runs with one seed (and one number of threads) end in the same bits.

Axis letters: N images, B images of a step, T pixels in raster order.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from imagegpt.model.modeling import ImageGPTForCausalImageModeling

Objective = Callable[[ImageGPTForCausalImageModeling, Tensor], Tensor]
Score = Callable[[ImageGPTForCausalImageModeling], float]


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How to train. Everything but the number of steps has the paper's value, or what suits a small data set."""

    num_steps: int  # updates of the weights
    batch_size: int = 128  # images in a step
    learning_rate: float = 0.003  # at its highest, after the warm-up
    warmup_steps: int = 100  # over which the rate rises linearly from 0; then it falls to 0 along a cosine
    beta1: float = 0.9  # of AdamW
    beta2: float = 0.95  # of AdamW; the paper saw loss spikes at 0.999
    weight_decay: float = 0.01  # of AdamW, on matrices; not on embeddings, biases and gains
    max_grad_norm: float = 1.0  # longer gradients are shortened to this
    average_decay: float = 0.99  # of the running average of the weights, per step; the average is what is kept
    validate_every: int = 100  # steps between two validations
    bfloat16: bool = False  # compute in bfloat16; weights and sums stay in float32
    seed: int = 0  # of the order of the images and of dropout

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be greater than 0, and finite")
        for name in ("warmup_steps", "weight_decay", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 0, and finite")
        for name in ("beta1", "beta2", "average_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is, told after each step."""

    step: int  # steps done, from 1
    num_steps: int  # steps in all
    loss: float  # of this step's images, in nats per pixel, dropout on
    validation_nll: float | None  # of the averaged weights, in nats per pixel, when this step ended with a validation
    elapsed_s: float  # since the first step began


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What became of a run."""

    best_step: int  # steps done when validation was best
    best_nll: float  # validation then, in nats per pixel
    final_nll: float  # validation after the last step, in nats per pixel
    elapsed_s: float  # the whole run, validation included


def learning_rate(step: int, options: TrainingOptions) -> float:
    """The rate of step 0, 1, ...: up a line to the highest, then down half a cosine, which ends at 0."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    left = (options.num_steps - step) / max(1, options.num_steps - options.warmup_steps)
    return options.learning_rate * 0.5 * (1 - math.cos(math.pi * left))


def batch_indices(step: int, *, num_images: int, batch_size: int, seed: int) -> Int64[np.ndarray, " b"]:
    """Which images step 0, 1, ... is made of: each pass over the data is a fresh shuffle, and steps run across passes.

    Returns: B indices below `num_images`, a function of the arguments alone.
    """
    wanted = np.arange(step * batch_size, (step + 1) * batch_size)
    passes = wanted // num_images
    shuffles = {p: np.random.default_rng((seed, p)).permutation(num_images) for p in np.unique(passes).tolist()}
    return np.array([shuffles[p][i] for p, i in zip(passes.tolist(), wanted % num_images, strict=True)], np.int64)


def train(
    model: ImageGPTForCausalImageModeling,
    ids: Int[Tensor, "n t"],
    options: TrainingOptions,
    *,
    objective: Objective,
    validate: Score,
    callback: Callable[[Progress], None] = lambda _: None,
) -> TrainingResult:
    """Train `model` in place; it ends with the averaged weights of the moment that validated best, in eval mode.

    Args:
        model: float32 weights, on the device to train on.
        ids: the images.
        options: see there.
        objective: a scalar to minimise, from the model and some images, such as `autoregressive_loss`.
        validate: nats per pixel of a model on images held out for this; called with the averaged weights every
            `validate_every` steps and after the last.
        callback: called after each step; what it raises ends the run.
    Raises: ValueError if there are no images; FloatingPointError if the loss is no longer finite.
    """
    if not len(ids):
        raise ValueError("there are no images to train on: give at least one")
    average = copy.deepcopy(model).eval().requires_grad_(False)
    best = {name: weight.clone() for name, weight in average.state_dict().items()}
    best_step, best_nll, nll = 0, math.inf, math.inf
    optimizer = _build_optimizer(model, options)
    start = time.perf_counter()
    model.train()
    with torch.random.fork_rng():
        for step in range(options.num_steps):
            indices = batch_indices(step, num_images=len(ids), batch_size=options.batch_size, seed=options.seed)
            loss = _update(model, optimizer, ids[torch.from_numpy(indices)].to(model.device), objective, step, options)
            _blend(average, model, options.average_decay, step)
            done = step + 1
            validated = done % options.validate_every == 0 or done == options.num_steps
            if validated:
                nll = validate(average)
                if nll < best_nll:
                    best_step, best_nll = done, nll
                    best = {name: weight.clone() for name, weight in average.state_dict().items()}
            callback(
                Progress(
                    step=done,
                    num_steps=options.num_steps,
                    loss=loss,
                    validation_nll=nll if validated else None,
                    elapsed_s=time.perf_counter() - start,
                )
            )
    model.load_state_dict(best)
    model.eval()
    return TrainingResult(best_step=best_step, best_nll=best_nll, final_nll=nll, elapsed_s=time.perf_counter() - start)


def _build_optimizer(model: nn.Module, options: TrainingOptions) -> torch.optim.AdamW:
    """AdamW over two groups: the projections' matrices, which decay, and the rest, which does not."""
    decayed, rest = [], []
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            (decayed if weight.ndim > 1 and not isinstance(module, nn.Embedding) else rest).append(weight)
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=(options.beta1, options.beta2), fused=True)


def _update(
    model: ImageGPTForCausalImageModeling,
    optimizer: torch.optim.Optimizer,
    ids: Int[Tensor, "b t"],
    objective: Objective,
    step: int,
    options: TrainingOptions,
) -> float:
    """One step; its loss."""
    # Seeded anew at each step, so that dropout too depends on nothing before it.
    torch.manual_seed(int(np.random.SeedSequence((options.seed, step)).generate_state(1, np.uint64)[0] >> 1))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, options)
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=options.bfloat16):
        loss = objective(model, ids)
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss of step {step + 1} is {value}: lower the learning rate")
    optimizer.zero_grad()
    loss.backward()
    clip_grad_norm_(model.parameters(), options.max_grad_norm)
    optimizer.step()
    return value


@torch.no_grad()
def _blend(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the average towards the weights; early on by more, so that it forgets how they were drawn."""
    share = 1 - min(decay, (1 + step) / (10 + step))
    for mean, weight in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(weight, share)
