"""Sampling rules: temperature, top-k, top-p and min-p, and sampling a colour from logits. Pure functions.

The sample is `argmax(logits + temperature * noise)` with Gumbel noise, which follows softmax(logits / temperature) (the
Gumbel-max trick; Maddison, Tarlow and Minka, "A* sampling", 2014, section 2). The noise comes from `noise`.

Axes: B images, V colours.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from imagegpt.common import ranges


@dataclass(frozen=True, kw_only=True)
class SamplingRules:
    """Temperature, and limits on which colours can be sampled.

    The rules apply in the order of the fields, each to the renormalised result of the one before.

    Args:
        temperature: divides the logits, 0 to 1,000; 1 is the model's own distribution, 0 always takes the most likely
            colour.
        top_k: only the k most likely colours, 1 to 65,536. Ties at the limit go to the lower index.
        top_p: only the most likely colours that together have at least this probability, in (0, 1]; 1 is no limit.
            At least one colour remains. Ties at the limit go to the lower index.
        min_p: only colours with at least this fraction of the highest probability, in [0, 1]; 0 is no limit.
    Raises: ValueError for values outside these ranges.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        checked = (
            ("temperature", ranges.TEMPERATURE.check("temperature", self.temperature)),
            ("top_k", ranges.TOP_K.check_optional("top_k", self.top_k)),
            ("top_p", ranges.TOP_P.check_optional("top_p", self.top_p)),
            ("min_p", ranges.MIN_P.check_optional("min_p", self.min_p)),
        )
        for name, value in checked:  # plain Python numbers, so that rules compare equal and serialise
            object.__setattr__(self, name, value)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely colour always wins, so that no noise is needed."""
        return self.temperature == 0 or self.top_k == 1

    def filter(self, logits: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        """Set the logits of excluded colours to -inf, without editing the input. Override this to add a rule."""
        return logits if self.is_greedy else filter_logits(logits, self)

    def __str__(self) -> str:
        limits = {"top-k": self.top_k, "top-p": self.top_p, "min-p": self.min_p}
        shown = [f"temperature {self.temperature:g}"]
        shown += [f"{name} {value:g}" for name, value in limits.items() if value is not None]
        return ", ".join(shown)


def filter_logits(logits: Float[Tensor, "b v"], rules: SamplingRules) -> Float[Tensor, "b v"]:
    """Exclude colours by the rules.

    Args:
        logits: finite; not edited.
        rules: if greedy, only the most likely colour remains (of ties, the lowest index).
    Returns: the logits (not divided by the temperature), -inf where a colour is excluded; a new tensor unless nothing
        is excluded.
    """
    if rules.is_greedy:
        best = logits.argmax(dim=-1, keepdim=True)
        return torch.full_like(logits, -math.inf).scatter(-1, best, logits.gather(-1, best))
    if rules.top_k is None and rules.top_p is None:
        return _apply_min_p(logits, rules)
    ranked, order = logits.sort(dim=-1, descending=True, stable=True)  # stable: of ties, the lower index first
    if rules.top_k is not None:
        beyond_k = torch.arange(ranked.shape[-1], device=ranked.device) >= rules.top_k
        ranked = ranked.masked_fill(beyond_k, -math.inf)
    if rules.top_p is not None and rules.top_p < 1:
        probabilities = _probabilities(ranked, rules.temperature)
        # Exclude a colour if those ranked before it reach top_p already: the one that crosses the limit remains.
        beyond_p = probabilities.cumsum(dim=-1) - probabilities >= rules.top_p
        ranked = ranked.masked_fill(beyond_p, -math.inf)
    return torch.empty_like(logits).scatter(-1, order, _apply_min_p(ranked, rules))


def sample_colors(
    logits: Float[Tensor, "b v"], noise: Float[Tensor, "b v"] | None, rules: SamplingRules
) -> Int64[Tensor, " b"]:
    """Sample one colour per image: the one with the highest score, see `gumbel_scores`.

    Returns: colour ids; of ties, the lowest.
    """
    return gumbel_scores(logits, noise, rules).argmax(dim=-1)


def gumbel_scores(
    logits: Float[Tensor, "b v"], noise: Float[Tensor, "b v"] | None, rules: SamplingRules
) -> Float[Tensor, "b v"]:
    """Filtered logits plus scaled noise. The colour with the highest score is the sample.

    Args:
        logits: finite; not edited.
        noise: from `gumbel_noise`; unused, and may be None, if `rules.is_greedy`.
    """
    if rules.is_greedy or noise is None:
        assert rules.is_greedy, "sampling needs noise"
        return rules.filter(logits)
    # Multiply the noise by the temperature rather than dividing the logits: that works for any small temperature.
    return rules.filter(logits) + rules.temperature * noise


def _probabilities(logits: Float[Tensor, "b v"], temperature: float) -> Float[Tensor, "b v"]:
    # Subtract the largest logit first: dividing by a tiny temperature then gives -inf at worst, never inf - inf.
    return ((logits - logits.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)


def _apply_min_p(logits: Float[Tensor, "b v"], rules: SamplingRules) -> Float[Tensor, "b v"]:
    if not rules.min_p:
        return logits
    probabilities = _probabilities(logits, rules.temperature)
    return logits.masked_fill(probabilities < rules.min_p * probabilities.amax(dim=-1, keepdim=True), -math.inf)
