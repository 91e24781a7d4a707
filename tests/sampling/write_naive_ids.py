"""Write `naive_ids.npz`: images of the bundled models, sampled by a naive loop.

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8000000000 python tests/sampling/write_naive_ids.py

Run it when a bundled model has changed. It takes about 40 minutes on one core (without the two variables, which make
glibc reuse its memory, almost twice as long), and resumes where it was stopped.

For every pixel of every image, the whole prefix goes through the model's ordinary forward in float32, with eager
attention and no cache. Another CPU rounds float32 differently, so an image in which rounding could change a pixel is
replaced by an image of another seed.

Axes: B images (one), T pixels in raster order, V colours.
"""

import dataclasses
import json
import logging
import math
import tempfile
import time
from pathlib import Path

import torch

from imagegpt.sampling import SamplingRules, image_seed
from imagegpt.sampling.noise import gumbel_noise, seed_tensor
from imagegpt.sampling.rules import gumbel_scores
from naive_ids import PATH, NaiveIds, hash_weights, load_bundled, write

NUM_IMAGES = {"digits": 300, "cifar10": 40}
GREEDY = SamplingRules(temperature=0)  # for one image of each model: its greedy images are all the same
RULES = [
    SamplingRules(),
    SamplingRules(temperature=0.9),
    SamplingRules(top_k=8),
    SamplingRules(top_p=0.9),
    SamplingRules(min_p=0.05),
]

# Logits of the same pixel from torch and from our kernels, both in float32, were measured on four cifar10 images: the
# difference between two likely colours (p > 1e-4) is off by 3.6e-5 at most, by 7e-6 as a median of the worst pairs.
SMALLEST_MARGIN = 5e-5

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Image:
    """One image, a line of the progress file."""

    seed: int
    rules: SamplingRules
    margin: float
    ids: list[int]


def clearance_of(logits, rules):
    """The distance of each colour from the limit between allowed and excluded colours, (B, V)."""
    clearance = torch.full_like(logits, math.inf)
    ranked, order = logits.sort(dim=-1, descending=True)
    if rules.top_k is not None and not rules.is_greedy:
        last, next_one = ranked[:, rules.top_k - 1, None], ranked[:, rules.top_k, None]
        clearance = clearance.minimum(torch.where(logits >= last, logits - next_one, last - logits))
    if rules.top_p is not None:
        probabilities = (ranked / rules.temperature).softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        clearance = clearance.minimum(torch.empty_like(logits).scatter(-1, order, (before - rules.top_p).abs()))
    if rules.min_p is not None:
        limit = logits.amax(dim=-1, keepdim=True) + rules.temperature * math.log(rules.min_p)
        clearance = clearance.minimum((logits - limit).abs())
    return clearance


def margin_of(logits, noise, rules):
    """How much the difference of two logits must change for another colour to be sampled.

    Either the sampled colour becomes excluded, or another one scores higher, and becomes allowed if it was excluded.
    (With top-p, limits are in units of probability, which change less than logits.)
    """
    scores, clearance = gumbel_scores(logits, noise, rules), clearance_of(logits, rules)
    best, sampled = scores.max(dim=-1, keepdim=True)
    unlimited = logits if rules.is_greedy else logits + rules.temperature * noise
    needed = (best - unlimited).maximum(clearance.masked_fill(scores.isfinite() | rules.is_greedy, 0))
    return needed.scatter(-1, sampled, clearance.gather(-1, sampled)).min().item()


@torch.inference_mode()
def sample(model, seed, rules):
    """One image, or None as soon as the margin of a pixel is too small."""
    num_pixels, num_colors = model.config.n_positions, model.config.num_colors
    noise = gumbel_noise(seed_tensor([seed]), torch.arange(num_pixels), num_colors)
    ids = torch.tensor([[model.config.sos_token_id]])
    margin = math.inf
    for pixel in range(num_pixels):
        logits = model(ids, use_cache=False, logits_to_keep=1).logits[:, -1]
        margin = min(margin, margin_of(logits, noise[:, pixel], rules))
        if margin < SMALLEST_MARGIN:
            logger.info("seed %d (%s): margin %.1e at pixel %d, too close", seed, rules, margin, pixel)
            return None
        color = gumbel_scores(logits, noise[:, pixel], rules).argmax(dim=-1, keepdim=True)
        ids = torch.cat([ids, color], dim=1)
    return Image(seed, rules, margin, ids[0, 1:].tolist())


def read_progress(path):
    images = []
    for line in path.read_text().splitlines() if path.exists() else []:
        fields = json.loads(line)
        images.append(Image(**{**fields, "rules": SamplingRules(**fields["rules"])}))
    return images


def sample_all(name, num_images):
    """All images of a model; each is appended to a progress file at once."""
    model = load_bundled(name)
    model.set_attn_implementation("eager")
    assert model.dtype == torch.float32
    weights_sha256 = hash_weights(model)
    path = Path(tempfile.gettempdir()) / f"naive-ids-{name}-{weights_sha256[:12]}.jsonl"
    images = read_progress(path)
    all_rules = [RULES[index % len(RULES)] for index in range(num_images - 1)] + [GREEDY]
    assert [image.rules for image in images] == all_rules[: len(images)], f"{path} has other rules: delete it"
    for index in range(len(images), num_images):
        start, image, attempt = time.perf_counter(), None, 0
        while image is None:
            assert attempt == 0 or not all_rules[index].is_greedy, "no seed changes a greedy image: leave it out"
            image, attempt = sample(model, image_seed(attempt, index), all_rules[index]), attempt + 1
        images.append(image)
        with path.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(image)) + "\n")
        seconds = time.perf_counter() - start
        logger.info("%s %d: %s, margin %.1e, %.1f s", name, index, image.rules, image.margin, seconds)
    return path, NaiveIds(
        ids=torch.tensor([image.ids for image in images]),
        seeds=[image.seed for image in images],
        rules=[image.rules for image in images],
        smallest_margin=min(image.margin for image in images),
        weights_sha256=weights_sha256,
    )


def main():
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    sampled = {name: sample_all(name, num_images) for name, num_images in NUM_IMAGES.items()}
    write({name: images for name, (_, images) in sampled.items()})
    for name, (progress, images) in sampled.items():
        progress.unlink()
        logger.info("%s: smallest margin %.1e", name, images.smallest_margin)
    logger.info("%s: %d bytes", PATH, PATH.stat().st_size)


if __name__ == "__main__":
    main()
