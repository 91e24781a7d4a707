"""The naive reference for sampling, a full forward pass for every pixel of one image; test models and prompts."""

import contextlib

import pytest
import torch

from helpers import randomize
from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling
from imagegpt.sampling import SamplingRules, image_seed, parallel
from imagegpt.sampling.draft_length import DraftLengthTuner
from imagegpt.sampling.noise import gumbel_noise, seed_tensor
from imagegpt.sampling.rules import sample_colors

NUM_PIXELS = 200  # four cache lengths, the last of which is not a whole bucket

RULES = [
    SamplingRules(),
    SamplingRules(temperature=0),
    SamplingRules(top_k=3, temperature=1.3),
    SamplingRules(top_p=0.8),
    SamplingRules(temperature=0.7, top_k=6, top_p=0.9, min_p=0.05),
]

# Every configuration option that changes the maths or the shapes of a block.
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
    """A random model with three blocks, four heads and 16 colours, whose pixels depend on all pixels before them."""
    fields = {"vocab_size": 17, "n_positions": num_pixels, "n_embd": width, "n_layer": 3, "n_head": 4}
    config = ImageGPTConfig(**{**fields, **VARIANTS[variant]})
    model = randomize(ImageGPTForCausalImageModeling(config)).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(2)  # so that the pixels are neither uniform nor certain
    return model


def prompts_of(lengths, num_colors=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, num_colors, (length,), generator=generator) for length in lengths]


def seeds_of(num, seed=0):
    return [image_seed(seed, index) for index in range(num)]


@torch.no_grad()
def naive(model, prompts, seeds, rules, num_pixels=None):
    """Sample whole images without a cache and without batching."""
    images = []
    num_colors = model.config.num_colors
    for prompt, seed in zip(prompts, seeds, strict=True):
        ids = torch.cat([torch.tensor([model.config.sos_token_id]), prompt])
        for pixel in range(len(prompt), num_pixels or model.config.n_positions):
            logits = model(ids[None], use_cache=False).logits[:, -1].float()
            noise = gumbel_noise(seed_tensor([seed]), torch.tensor([pixel]), num_colors)[:, 0]
            ids = torch.cat([ids, sample_colors(logits, noise, rules)])
        images.append(ids[1:])
    return torch.stack(images)


class FixedLengths(DraftLengthTuner):
    """Cycles through these draft lengths, independent of timing."""

    def __init__(self, *lengths):
        super().__init__(NUM_PIXELS)
        self._cycle = list(lengths)

    def choose(self):
        self._cycle.append(self._cycle.pop(0))
        return self._cycle[-1]

    def observe(self, length, accepted, seconds):
        pass


@contextlib.contextmanager
def fixed_draft_lengths(*lengths):
    """Let parallel decoding cycle through these draft lengths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            parallel, "DraftLengthTuner", lambda num_pixels: FixedLengths(*(min(n, num_pixels) for n in lengths))
        )
        yield
