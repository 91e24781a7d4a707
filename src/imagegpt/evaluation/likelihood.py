"""Exact likelihoods of images under a causal model, in nats per pixel.

Axis letters: N images, B images of a batch, T pixels in raster order, V colours (the start token, sos, has id V).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from imagegpt.common import ranges
from imagegpt.common.precision import at_least_float32
from imagegpt.model.eval_mode import eval_mode
from imagegpt.model.modeling import ImageGPTForCausalImageModeling


def pixel_nll(
    model: ImageGPTForCausalImageModeling,
    ids: Int[Tensor, "n t"],
    *,
    batch_size: int = 64,
    progress: Callable[[int, int], None] = lambda *_: None,
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
            fed = functional.pad(pixels[:, :-1], (1, 0), value=sos)
            logits = model(fed, use_cache=False).logits  # (B, T, V)
            # In half precision a pixel's nats would be rounded to one part in 256.
            by_class = logits.to(at_least_float32(logits.dtype)).transpose(1, 2)
            rows.append(functional.cross_entropy(by_class, pixels, reduction="none").cpu())
            progress(sum(map(len, rows)), len(ids))
    return torch.cat(rows)  # outside inference mode, so that the caller can use it in autograd


def mean_nll(
    model: ImageGPTForCausalImageModeling,
    ids: Int[Tensor, "n t"],
    *,
    batch_size: int = 64,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> float:
    """Return the mean of `pixel_nll` over all pixels of all images, in nats per pixel, summed in float64."""
    return float(pixel_nll(model, ids, batch_size=batch_size, progress=progress).double().mean())


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
