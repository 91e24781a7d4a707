"""Exact likelihoods of images under a causal model, in nats per pixel.

Axis letters: N images, B images of a batch, T pixels in raster order, V colours (the start token, sos, has id V).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imagegpt.common import ranges
from imagegpt.model.eval_mode import eval_mode
from imagegpt.model.losses import cross_entropy, with_start_token
from imagegpt.model.modeling import ImageGPTForCausalImageModeling

Progress = Callable[[int, int], None]  # called with images scored, and images in all


def no_progress(done: int, total: int) -> None:
    """Report no progress."""


def pixel_nll(
    model: ImageGPTForCausalImageModeling,
    ids: Int[Tensor, "n t"],
    *,
    batch_size: int = 64,
    progress: Progress = no_progress,
) -> Float[Tensor, "n t"]:
    """-ln p(pixel | the pixels before it), for each pixel; an image's sum is its exact negative log-likelihood.

    Args:
        model: a causal model; dropout is off during the call, and each module keeps its mode.
        ids: whole images, T = n_positions, with ids 0 to V - 1.
        batch_size: images of one forward pass; more need more memory and change the result by rounding only.
        progress: called with images scored, and images in all, after each forward pass.
    Returns: nats, float32 on the CPU, or float64 if the model is.
    Raises: ValueError if the model is bidirectional, for images of another length, ids that are no colours, or a
        batch size below 1.
    """
    batch_size = ranges.BATCH_SIZE.check("batch_size", batch_size)
    _check(model, ids)
    sos, rows = model.config.sos_token_id, []
    progress(0, len(ids))
    with eval_mode(model), torch.inference_mode():
        for batch in ids.split(batch_size):
            pixels = batch.to(model.device)
            logits = model(with_start_token(pixels, sos), use_cache=False).logits  # (B, T, V)
            rows.append(cross_entropy(logits.transpose(1, 2), pixels, reduction="none").cpu())
            progress(sum(map(len, rows)), len(ids))
    return torch.cat(rows)  # outside inference mode, so that the caller can use it in autograd


def mean_nll(model: ImageGPTForCausalImageModeling, ids: Int[Tensor, "n t"], *, batch_size: int = 64) -> float:
    """Return the mean of `pixel_nll` over all pixels of all images, in nats per pixel, summed in float64."""
    return float(pixel_nll(model, ids, batch_size=batch_size).double().mean())


def _check(model: ImageGPTForCausalImageModeling, ids: Int[Tensor, "..."]) -> None:
    config = model.config
    if not config.is_causal:
        raise ValueError("this model is bidirectional (is_causal=False): only a causal model has an exact likelihood")
    if ids.ndim != 2 or ids.shape[1] != config.n_positions or not len(ids):
        raise ValueError(
            f"the ids have the shape {tuple(ids.shape)}: this model scores whole images, give "
            f"(images, {config.n_positions}), without the start token"
        )
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= config.num_colors:
        raise ValueError(
            f"the ids contain {low if low < 0 else high}: this model's colours are 0 to {config.num_colors - 1}"
        )
