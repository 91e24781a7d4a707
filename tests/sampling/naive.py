"""What sampling is compared with: the whole model, for every pixel, one image at a time; models and samplers for it."""

import contextlib

import pytest
import torch

from helpers import randomize
from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling
from imagegpt.sampling import SamplingRules, image_seed, parallel
from imagegpt.sampling.draft_length import DraftLength
from imagegpt.sampling.rules import draw, gumbel_noise, seed_tensor

NUM_PIXELS = 200  # four lengths of the cache, the last of them no whole bucket

RULES = [
    SamplingRules(),
    SamplingRules(temperature=0),
    SamplingRules(top_k=3, temperature=1.3),
    SamplingRules(top_p=0.8),
    SamplingRules(temperature=0.7, top_k=6, top_p=0.9, min_p=0.05),
]

# Everything in a configuration that changes what a block computes or the shapes it computes with.
VARIANTS = {
    "plain": {},
    "no biases": {"use_bias": False},
    "narrow mlp": {"n_inner": 24},
    "exact gelu": {"activation_function": "gelu"},
    "relu": {"activation_function": "relu"},
    "large epsilon": {"layer_norm_epsilon": 0.1},
    "scores not scaled": {"scale_attn_weights": False},
    "scores scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "one head": {"n_head": 1},
    "heads pruned": {"pruned_heads": {0: [1, 2], 2: [3]}},
}


def varied_model(variant="plain", num_pixels=16, width=64):
    """A random model of three blocks with four heads, and 16 colours that depend on all that came before."""
    fields = {"vocab_size": 17, "n_positions": num_pixels, "n_embd": width, "n_layer": 3, "n_head": 4}
    config = ImageGPTConfig(**{**fields, **VARIANTS[variant]})
    model = randomize(ImageGPTForCausalImageModeling(config)).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(2)  # so that pixels are neither random nor foregone
    return model


def prompts_of(lengths, num_colors=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, num_colors, (length,), generator=generator) for length in lengths]


def seeds_of(num, seed=0):
    return [image_seed(seed, index) for index in range(num)]


@torch.no_grad()
def naive(model, prompts, seeds, rules, num_pixels=None):
    """Whole images, drawn with no cache and no batch."""
    images = []
    num_colors = model.config.num_colors
    for prompt, seed in zip(prompts, seeds, strict=True):
        ids = torch.cat([torch.tensor([model.config.sos_token_id]), prompt])
        for pixel in range(len(prompt), num_pixels or model.config.n_positions):
            logits = model(ids[None], use_cache=False).logits[:, -1].float()
            noise = gumbel_noise(seed_tensor([seed]), torch.tensor([pixel]), num_colors)[:, 0]
            ids = torch.cat([ids, draw(logits, noise, rules)])
        images.append(ids[1:])
    return torch.stack(images)


class Lengths(DraftLength):
    """Drafts of these lengths in turn, whatever the clock says."""

    def __init__(self, *lengths):
        super().__init__(NUM_PIXELS)
        self._turns = list(lengths)

    def choose(self):
        self._turns.append(self._turns.pop(0))
        return self._turns[-1]

    def observe(self, length, accepted, seconds):
        pass


@contextlib.contextmanager
def drafts_of(*lengths):
    """Parallel decoding feeds so many positions in turn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "DraftLength", lambda num_pixels: Lengths(*(min(n, num_pixels) for n in lengths)))
        yield
