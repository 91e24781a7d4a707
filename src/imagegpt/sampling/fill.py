"""Filling hidden pixels with a bidirectional (BERT) model, which sees all pixels that are known.

The model gives each hidden pixel a distribution by itself, so pixels that are drawn in one pass know nothing of each
other. Hence a schedule: first a few pixels, then more, each pass seeing what the earlier ones drew (Chang et al., 2022,
"MaskGIT", whose cosine it is, with an order drawn at random); then some of them are hidden again and drawn anew, again
and again, which is Gibbs sampling of blocks.

Axes: B images, T pixels, V colours.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from imagegpt.common import ranges
from imagegpt.model.eval_mode import evaluating
from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.sampling.rules import SamplingRules, draw, gumbel_noise, image_seed, seed_tensor

_AT_ONCE = 32  # images in a pass
_ORDER_COLOR = 1  # the order of pixels is by the noise of a model with a single colour


@dataclass(frozen=True, kw_only=True)
class FillSchedule:
    """In how many passes hidden pixels are filled.

    Args:
        passes: until all are; 1 draws them all at once.
        refills: passes after that, in each of which some are hidden and drawn again.
        share: of the pixels that were hidden, in each refill.
    Raises: ValueError for numbers outside their ranges.
    """

    passes: int = 16
    refills: int = 16
    share: float = 0.15

    def __post_init__(self) -> None:
        given = (("passes", ranges.PASSES), ("refills", ranges.REFILLS), ("share", ranges.REFILL_SHARE))
        for name, allowed in given:
            object.__setattr__(self, name, allowed.check(name, getattr(self, name)))

    def known_after(self, number: int, num_hidden: int) -> int:
        """How many of the hidden pixels are known after pass 0, 1, ...: few at first, then more and more."""
        if number + 1 >= self.passes:
            return num_hidden
        return num_hidden - math.ceil(num_hidden * math.cos(0.5 * math.pi * (number + 1) / self.passes))


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
    """Draw hidden pixels.

    Args:
        model: bidirectional; dropout is off during the call.
        ids: whole images; what stands where pixels are hidden does not matter.
        hidden: which are.
        seeds: of each image; what is drawn depends on its seed, its known pixels and the schedule alone.
        rules: how colours are drawn; None is the full distribution.
        schedule: in how many passes; None is the default.
        progress: called with passes done, and passes in all.
    Returns: the images, known pixels as they were.
    Raises: ValueError if the model is causal, or shapes, ids or the number of seeds do not fit.
    """
    _check(model, ids, hidden, seeds)
    rules, schedule = rules or SamplingRules(), schedule or FillSchedule()
    parts = [slice(start, start + _AT_ONCE) for start in range(0, len(ids), _AT_ONCE)]
    total, done = len(parts) * (schedule.passes + schedule.refills), 0
    progress(done, total)
    out = ids.masked_fill(hidden, 0)
    with evaluating(model):
        for part in parts:
            for number, (unknown, drawn) in enumerate(_turns(hidden[part], seeds[part], schedule)):
                of_turn = [image_seed(seed, number) for seed in seeds[part]]
                out[part] = _redrawn(model, out[part], unknown, drawn, of_turn, rules)
                done += 1
                progress(done, total)
    return out


def _turns(
    hidden: Bool[Tensor, "b t"], seeds: Sequence[int], schedule: FillSchedule
) -> Iterator[tuple[Bool[Tensor, "b t"], Bool[Tensor, "b t"]]]:
    """For each pass, which pixels the model does not see, and which of them become known."""
    counts = hidden.sum(dim=1).tolist()
    rank = _ranks(hidden, seeds, 0)
    known = torch.zeros_like(rank[:, :1])
    for number in range(schedule.passes):
        after = torch.tensor([[schedule.known_after(number, count)] for count in counts], device=hidden.device)
        yield hidden & (rank >= known), hidden & (rank >= known) & (rank < after)
        known = after
    for number in range(schedule.refills):
        some = torch.tensor([[math.ceil(schedule.share * count)] for count in counts], device=hidden.device)
        again = hidden & (_ranks(hidden, seeds, 1 + number) < some)
        yield again, again


def _ranks(hidden: Bool[Tensor, "b t"], seeds: Sequence[int], number: int) -> Int64[Tensor, "b t"]:
    """A random order of each image's hidden pixels, 0 for the first; the others come after them."""
    order_seeds = seed_tensor([image_seed(image_seed(seed, number), 1) for seed in seeds], hidden.device)
    pixels = torch.arange(hidden.shape[1], device=hidden.device)
    keys = gumbel_noise(order_seeds, pixels, _ORDER_COLOR)[..., 0].masked_fill(~hidden, math.inf)
    return keys.argsort(dim=1, stable=True).argsort(dim=1, stable=True)


def _redrawn(
    model: ImageGPTForCausalImageModeling,
    ids: Int64[Tensor, "b t"],
    unknown: Bool[Tensor, "b t"],
    drawn: Bool[Tensor, "b t"],
    seeds: Sequence[int],
    rules: SamplingRules,
) -> Int64[Tensor, "b t"]:
    """One pass: draw some of the pixels that are not known."""
    if not drawn.any():
        return ids
    embeddings = model.transformer.wte(ids).masked_fill(unknown.unsqueeze(-1), 0)
    logits = model(inputs_embeds=embeddings, use_cache=False).logits.float()
    if not torch.isfinite(logits).all():
        raise ValueError("the model's logits are not finite: its weights are damaged, or need float32")
    noise = None
    if not rules.is_greedy:
        pixels = torch.arange(ids.shape[1], device=ids.device)
        noise = gumbel_noise(seed_tensor(seeds, ids.device), pixels, logits.shape[-1]).flatten(0, 1)
    colors = draw(logits.flatten(0, 1), noise, rules).view(ids.shape)
    return torch.where(drawn, colors, ids)


def _check(model: ImageGPTForCausalImageModeling, ids: Tensor, hidden: Tensor, seeds: Sequence[int]) -> None:
    config = model.config
    if config.is_causal:
        raise ValueError(
            "this model is causal (is_causal=True) and sees only the pixels before one: it completes images, and only "
            "a bidirectional (BERT) one fills them"
        )
    if ids.ndim != 2 or ids.shape[1] != config.n_positions or hidden.shape != ids.shape or hidden.dtype != torch.bool:
        raise ValueError(
            f"the ids have the shape {tuple(ids.shape)} and the mask {tuple(hidden.shape)} ({hidden.dtype}): both must "
            f"be (images, {config.n_positions}), the mask of booleans"
        )
    if len(seeds) != len(ids):
        raise ValueError(f"there are {len(seeds)} seeds for {len(ids)} images: give one for each")
    known = ids[~hidden]
    if known.numel() and not (int(known.min()) >= 0 and int(known.max()) < config.num_colors):
        raise ValueError(f"the ids of known pixels must lie in 0 to {config.num_colors - 1}")
