"""How a pixel is drawn from logits: which colours may be drawn, the noise, and the draw itself. Pure functions.

A draw is `argmax(logits + temperature * noise)` with Gumbel noise, which is a sample of softmax(logits / temperature)
(the Gumbel-max trick; Maddison, Tarlow and Minka, "A* sampling", 2014, section 2). What is unusual: the noise is a
function of (seed of the image, pixel, colour) alone, computed by a counter-based generator. So an image does not change
with the batch it is drawn in, with the device, or with the order in which its pixels are computed.

Axes: B images, P pixels in raster order, V colours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from imagegpt.common import ranges

_MASK_32 = 0xFFFFFFFF
_MASK_64 = 0xFFFFFFFFFFFFFFFF

# Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011): multipliers and key increments
# of Philox4x32.
_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_PHILOX_ROUNDS = 10

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15  # SplitMix64's increment: 2^64 divided by the golden ratio


@dataclass(frozen=True, kw_only=True)
class SamplingRules:
    """Which colours may be drawn, and how boldly.

    The rules apply in the order of the fields, each to the distribution the one before left over, renormalised.

    Args:
        temperature: divides the logits, 0 to 1,000; 1 is the model's own distribution, 0 always takes the likeliest
            colour.
        top_k: only the k likeliest colours, 1 to 65,536; of equally likely colours at the limit, those with the lower
            index.
        top_p: only the likeliest colours that together have at least this probability, in (0, 1]; 1 is no limit.
            At least one colour is kept; of equally likely ones at the limit, those with the lower index.
        min_p: only colours at least this many times as likely as the likeliest, in [0, 1]; 0 is no limit.
    Raises: ValueError for values outside these ranges.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        given = (
            ("temperature", ranges.TEMPERATURE.check("temperature", self.temperature)),
            ("top_k", ranges.TOP_K.check_if_given("top_k", self.top_k)),
            ("top_p", ranges.TOP_P.check_if_given("top_p", self.top_p)),
            ("min_p", ranges.MIN_P.check_if_given("min_p", self.min_p)),
        )
        for name, value in given:  # plain numbers, so that rules can be compared and written to files
            object.__setattr__(self, name, value)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest colour is always taken, so that no noise is needed."""
        return self.temperature == 0 or self.top_k == 1

    def allowed(self, logits: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        """The logits, -inf where a colour may not be drawn; not edited. A rule of your own overrides this."""
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
        rules: at temperature 0 only the likeliest colour is left (the lowest index of equals).
    Returns: the logits (not divided by the temperature), -inf where a colour is excluded; a new tensor unless nothing
        is excluded.
    """
    if rules.is_greedy:
        best = logits.argmax(dim=-1, keepdim=True)
        return torch.full_like(logits, -math.inf).scatter(-1, best, logits.gather(-1, best))
    if rules.top_k is None and rules.top_p is None:
        return _exclude_unlikely(logits, rules)
    ranked, order = logits.sort(dim=-1, descending=True, stable=True)  # stable: of equals, the lower index first
    if rules.top_k is not None:
        beyond = torch.arange(ranked.shape[-1], device=ranked.device) >= rules.top_k
        ranked = ranked.masked_fill(beyond, -math.inf)
    if rules.top_p is not None and rules.top_p < 1:
        probabilities = _probabilities(ranked, rules.temperature)
        # A colour stays if those before it fall short of top_p: so the one that crosses the line stays too.
        enough = probabilities.cumsum(dim=-1) - probabilities >= rules.top_p
        ranked = ranked.masked_fill(enough, -math.inf)
    return torch.empty_like(logits).scatter(-1, order, _exclude_unlikely(ranked, rules))


def draw(logits: Float[Tensor, "b v"], noise: Float[Tensor, "b v"] | None, rules: SamplingRules) -> Int64[Tensor, " b"]:
    """Draw one colour an image: the one with the highest score.

    Args:
        logits: as for `score`, as are noise and rules.
        noise: likewise.
        rules: likewise.
    Returns: colour ids; of equals the lowest.
    """
    return score(logits, noise, rules).argmax(dim=-1)


def score(
    logits: Float[Tensor, "b v"], noise: Float[Tensor, "b v"] | None, rules: SamplingRules
) -> Float[Tensor, "b v"]:
    """What the largest of is drawn: logits of colours that the rules allow, and noise.

    Args:
        logits: finite; not edited.
        noise: standard Gumbel noise, from `gumbel_noise`; not looked at (and may be None) if `rules.is_greedy`.
        rules: see `SamplingRules`.
    """
    if rules.is_greedy or noise is None:
        assert rules.is_greedy, "sampling needs noise"
        return rules.allowed(logits)
    # The noise times the temperature, not the logits divided by it: no temperature is too small for that.
    return rules.allowed(logits) + rules.temperature * noise


def gumbel_noise(seeds: Int64[Tensor, " b"], pixels: Int64[Tensor, " p"], num_colors: int) -> Float32[Tensor, "b p v"]:
    """Standard Gumbel noise, -log(-log(u)), each number a function of (seed, pixel, colour) alone.

    Colour v of pixel p is word v % 4 of Philox4x32-10 with the counter (v // 4, p, 0, 0) and the seed as its key, low
    half first. A word w stands for u = 1 - (w + 1/2) / 2^32, strictly inside (0, 1) and finest near 1, where the
    winners of a draw come from. The logarithms are taken in float64 and rounded once, so that
    devices and vector widths, which differ in the last bit of a float32 logarithm, agree.

    Args:
        seeds: one 64-bit seed an image, see `seed_tensor`.
        pixels: raster indices, >= 0; computing many at once is much faster than one by one.
        num_colors: V; the noise of a colour does not depend on it.
    Returns: values in about -3.2 to 22.9, on the device of `seeds`.
    """
    num_blocks = -(-num_colors // 4)
    seeds = seeds.view(-1, 1, 1)
    shape = (seeds.shape[0], pixels.shape[0], num_blocks)
    blocks = torch.arange(num_blocks, device=seeds.device).expand(shape)
    zero = torch.zeros((), dtype=torch.int64, device=seeds.device)
    counter = (blocks, pixels.to(seeds.device).view(1, -1, 1), zero, zero)
    words = torch.stack(philox(counter, (seeds & _MASK_32, (seeds >> 32) & _MASK_32)), dim=-1)
    below_one = words.flatten(2)[:, :, :num_colors].double().add_(0.5).mul_(2.0**-32)  # 1 - u
    return below_one.neg_().log1p_().neg_().log_().neg_().float()


def philox(counter: Sequence[Int64[Tensor, "..."]], key: Sequence[Int64[Tensor, "..."]]) -> list[Int64[Tensor, "..."]]:
    """Philox4x32-10: four random 32-bit words for each counter and key.

    Args:
        counter: four tensors of 32-bit words, 0 to 2^32 - 1, in int64; they broadcast.
        key: two such tensors.
    Returns: four tensors of words, in int64.
    Source: Salmon et al. 2011 (see the top), tested against the vectors they publish.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_PHILOX_ROUNDS):
        # int64 multiplication wraps around, which leaves all 64 bits of the unsigned product in place; only the
        # arithmetic shift has to be told to forget the sign.
        product_0, product_1 = c0 * _PHILOX_MULTIPLIERS[0], c2 * _PHILOX_MULTIPLIERS[1]
        c0 = ((product_1 >> 32) & _MASK_32) ^ c1 ^ k0
        c2 = ((product_0 >> 32) & _MASK_32) ^ c3 ^ k1
        c1, c3 = product_1 & _MASK_32, product_0 & _MASK_32
        k0, k1 = (k0 + _PHILOX_INCREMENTS[0]) & _MASK_32, (k1 + _PHILOX_INCREMENTS[1]) & _MASK_32
    return [c0, c1, c2, c3]


def image_seed(seed: int, index: int) -> int:
    """The seed of one image of a run, so that image `index` depends on `seed` and `index` alone.

    Args:
        seed: of the run, 0 to 2^64 - 1.
        index: of the image, 0 to 2^64 - 1.
    Returns: 0 to 2^64 - 1; different indices below 2^64 never share a seed within a run.
    Raises: ValueError for numbers outside these ranges.
    Source: output `index` of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators" 2014),
        started at the mixed seed, so that the runs of neighbouring seeds have nothing in common.
    """
    seed, index = ranges.SEED.check("seed", seed), ranges.INDEX.check("the index of an image", index)
    return _mix(_mix(seed) + (index + 1) * _GOLDEN_GAMMA)


def seed_tensor(seeds: Sequence[int], device: torch.device | str = "cpu") -> Int64[Tensor, " b"]:
    """64-bit seeds as a tensor, the upper half of their range as negative numbers.

    Raises: ValueError if a seed is not a whole number from 0 to 2^64 - 1.
    """
    checked = [ranges.SEED.check("seed", seed) for seed in seeds]
    signed = [seed - (1 << 64) if seed >> 63 else seed for seed in checked]
    return torch.tensor(signed, dtype=torch.int64, device=device)


def _mix(x: int) -> int:
    """SplitMix64's output function, a bijection of 64-bit numbers."""
    x &= _MASK_64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return x ^ (x >> 31)


def _probabilities(logits: Float[Tensor, "b v"], temperature: float) -> Float[Tensor, "b v"]:
    # The largest logit is brought to 0 first: dividing by a tiny temperature then gives -inf at worst, never inf - inf.
    return ((logits - logits.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)


def _exclude_unlikely(logits: Float[Tensor, "b v"], rules: SamplingRules) -> Float[Tensor, "b v"]:
    """Apply min_p."""
    if not rules.min_p:
        return logits
    probabilities = _probabilities(logits, rules.temperature)
    return logits.masked_fill(probabilities < rules.min_p * probabilities.amax(dim=-1, keepdim=True), -math.inf)
