"""Filling hidden pixels with a bidirectional (BERT) model, which attends to all known pixels.

The model predicts each hidden pixel independently, so pixels sampled in the same pass do not depend on each other.
Hence a schedule: a few pixels first, then more and more, each pass conditioned on the ones before (Chang et al., 2022,
"MaskGIT", whose cosine schedule this is, in a random order); then passes that hide a random fraction again and resample
it, which is blocked Gibbs sampling.

Axes: B images, T pixels, V colours.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from imagegpt.common import ranges
from imagegpt.model.eval_mode import eval_mode
from imagegpt.model.losses import masked_embeddings
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.sampling.noise import gumbel_noise, image_seed, seed_tensor
from imagegpt.sampling.rules import SamplingRules, sample_colors
from imagegpt.sampling.session import LogitsNotFiniteError

_BATCH_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class FillSchedule:
    """The number of passes that fill the hidden pixels.

    Args:
        passes: until all pixels are known; 1 samples them all at once.
        refills: further passes, each of which resamples some of them.
        refill_fraction: of the hidden pixels, resampled by each refill.
    Raises: ValueError for numbers outside their ranges.
    """

    passes: int = 16
    refills: int = 16
    refill_fraction: float = 0.15

    def __post_init__(self) -> None:
        fields = (
            ("passes", ranges.PASSES), ("refills", ranges.REFILLS), ("refill_fraction", ranges.REFILL_FRACTION)
        )  # fmt: skip
        for name, allowed in fields:
            object.__setattr__(self, name, allowed.check(name, getattr(self, name)))

    def num_known_after(self, pass_index: int, num_hidden: int) -> int:
        """How many of the hidden pixels are known after this pass (0 for the first): few at first, then more."""
        if pass_index + 1 >= self.passes:
            return num_hidden
        return num_hidden - math.ceil(num_hidden * math.cos(0.5 * math.pi * (pass_index + 1) / self.passes))


@torch.inference_mode()
def fill(
    model: ImageGPTForCausalImageModeling,
    ids: Int64[Tensor, "b t"],
    hidden: Bool[Tensor, "b t"],
    *,
    seeds: Sequence[int],
    rules: SamplingRules | None = None,
    schedule: FillSchedule | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Int64[Tensor, "b t"]:
    """Sample hidden pixels.

    Args:
        model: bidirectional; dropout is off during the call.
        ids: whole images; the values of hidden pixels are ignored.
        hidden: True for the pixels to sample.
        seeds: one per image; the result depends on its seed, its known pixels, the rules and the schedule alone.
        rules: None is the model's own distribution.
        progress: called with the number of passes done and in total.
    Returns: the images, with the known pixels unchanged.
    Raises: ValueError if the model is causal, or shapes, ids or the number of seeds do not fit.
    """
    _check_inputs(model, ids, hidden, seeds)
    rules, schedule = rules or SamplingRules(), schedule or FillSchedule()
    batches = [slice(start, start + _BATCH_SIZE) for start in range(0, len(ids), _BATCH_SIZE)]
    total, done = len(batches) * (schedule.passes + schedule.refills), 0
    progress(done, total)
    out = ids.masked_fill(hidden, 0)
    with eval_mode(model):
        for batch in batches:
            for pass_index, (unknown, target) in enumerate(_plan_passes(hidden[batch], seeds[batch], schedule)):
                pass_seeds = [image_seed(seed, pass_index) for seed in seeds[batch]]
                out[batch] = _run_pass(model, out[batch], unknown, target, pass_seeds, rules)
                done += 1
                progress(done, total)
    return out


def _plan_passes(
    hidden: Bool[Tensor, "b t"], seeds: Sequence[int], schedule: FillSchedule
) -> Iterator[tuple[Bool[Tensor, "b t"], Bool[Tensor, "b t"]]]:
    """Yield two masks for each pass: the pixels masked in the model's input, and those of them to sample."""
    counts = hidden.sum(dim=1).tolist()
    rank = _random_ranks(hidden, seeds, 0)
    known = torch.zeros_like(rank[:, :1])
    for pass_index in range(schedule.passes):
        after = torch.tensor([[schedule.num_known_after(pass_index, count)] for count in counts], device=hidden.device)
        yield hidden & (rank >= known), hidden & (rank >= known) & (rank < after)
        known = after
    for refill in range(schedule.refills):
        sizes = torch.tensor([[math.ceil(schedule.refill_fraction * n)] for n in counts], device=hidden.device)
        resampled = hidden & (_random_ranks(hidden, seeds, 1 + refill) < sizes)
        yield resampled, resampled


def _random_ranks(hidden: Bool[Tensor, "b t"], seeds: Sequence[int], index: int) -> Int64[Tensor, "b t"]:
    """Rank each image's hidden pixels in a random order, from 0; the other pixels rank behind them."""
    order_seeds = seed_tensor([image_seed(image_seed(seed, index), 1) for seed in seeds], hidden.device)
    pixels = torch.arange(hidden.shape[1], device=hidden.device)
    keys = gumbel_noise(order_seeds, pixels, 1)[..., 0].masked_fill(~hidden, math.inf)
    return keys.argsort(dim=1, stable=True).argsort(dim=1, stable=True)


def _run_pass(
    model: ImageGPTForCausalImageModeling,
    ids: Int64[Tensor, "b t"],
    unknown: Bool[Tensor, "b t"],
    target: Bool[Tensor, "b t"],
    seeds: Sequence[int],
    rules: SamplingRules,
) -> Int64[Tensor, "b t"]:
    """Sample the target pixels in one forward pass."""
    if not target.any():
        return ids
    logits = model(inputs_embeds=masked_embeddings(model, ids, unknown), use_cache=False).logits.float()
    if not torch.isfinite(logits).all():
        raise LogitsNotFiniteError
    noise = None
    if not rules.is_greedy:
        pixels = torch.arange(ids.shape[1], device=ids.device)
        noise = gumbel_noise(seed_tensor(seeds, ids.device), pixels, logits.shape[-1]).flatten(0, 1)
    colors = sample_colors(logits.flatten(0, 1), noise, rules).view(ids.shape)
    return torch.where(target, colors, ids)


def _check_inputs(model: ImageGPTForCausalImageModeling, ids: Tensor, hidden: Tensor, seeds: Sequence[int]) -> None:
    config = model.config
    if config.is_causal:
        raise ValueError(
            "this model is causal (is_causal=True), so each pixel sees only those before it: complete images with it, "
            "or give a bidirectional (BERT) model to fill them"
        )
    if ids.ndim != 2 or ids.shape[1] != config.n_positions or hidden.shape != ids.shape or hidden.dtype != torch.bool:
        raise ValueError(
            f"the ids have the shape {tuple(ids.shape)} and the mask {tuple(hidden.shape)} ({hidden.dtype}): both must "
            f"be (images, {config.n_positions}), and the mask boolean"
        )
    if len(seeds) != len(ids):
        raise ValueError(f"there are {len(seeds)} seeds for {len(ids)} images: give one seed per image")
    known = ids[~hidden]
    if known.numel() and not (int(known.min()) >= 0 and int(known.max()) < config.num_colors):
        raise ValueError(f"the ids of known pixels must lie in 0 to {config.num_colors - 1}")
