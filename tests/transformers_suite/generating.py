"""Models, prompts and reference implementations for the generation tests of this folder.

The references use `forward` without a cache, and not `generate`. All in float64, so that results compare exactly.
"""

import pytest
import torch

from helpers import image_ids, tiny_model

PIXELS = 12
COLOURS = 16
PROMPT = 4  # the start token and three pixels
KINDS = {
    "plain": {},
    "no_biases": {"use_bias": False},
    "scaled": {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
    "cross_attention": {"add_cross_attention": True},
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
EAGER_AND_SDPA = pytest.mark.parametrize("backend", ["eager", "sdpa"])


def generator(kind="plain", backend="sdpa", seed=0, dtype=torch.float64, **overrides):
    """A tiny generative model of the kind."""
    options = {"n_positions": PIXELS, "n_embd": 16, "n_head": 2, **KINDS[kind], **overrides}
    return tiny_model(seed=seed, dtype=dtype, backend=backend, **options)


def prompts(batch=2, length=PROMPT, seed=0):
    return image_ids(batch=batch, pixels=length, seed=seed)


def inputs_of(kind, batch=2):
    """Additional inputs of a model of this kind."""
    if kind != "cross_attention":
        return {}
    generator = torch.Generator().manual_seed(7)
    return {"encoder_hidden_states": torch.randn(batch, 3, 16, generator=generator, dtype=torch.float64)}


def positions(mask):
    """Positions that count from the first real pixel, (B, S)."""
    return (mask.cumsum(1) - 1).clamp(min=0)


@torch.no_grad()
def logits_after(model, ids, mask=None, **inputs):
    """Logits of the next pixel, (B, V), from one forward pass."""
    if mask is not None:
        inputs = {**inputs, "attention_mask": mask, "position_ids": positions(mask)}
    return model(ids, use_cache=False, **inputs).logits[:, -1].float()


def naive(model, ids, num_new=None, mask=None, rule=lambda ids, logits: logits, **inputs):
    """Greedy search; `rule` changes the logits first."""
    for _ in range(PIXELS + 1 - ids.shape[1] if num_new is None else num_new):
        pixel = rule(ids, logits_after(model, ids, mask, **inputs)).argmax(-1, keepdim=True)
        ids = torch.cat([ids, pixel], dim=1)
        mask = None if mask is None else torch.cat([mask, torch.ones_like(pixel)], dim=1)
    return ids


def naive_beams(model, ids, num_beams, num_new, **inputs):
    """Beam search over one prompt (1, P): the beams, best first, and their log-probabilities."""
    beams, totals = ids, torch.zeros(1)
    for _ in range(num_new):
        repeated = {name: x.expand(len(beams), *x.shape[1:]) for name, x in inputs.items()}
        scores = totals[:, None] + logits_after(model, beams, **repeated).log_softmax(-1)
        totals, best = scores.flatten().topk(num_beams)
        beams = torch.cat([beams[best // COLOURS], (best % COLOURS)[:, None]], dim=1)
    return beams, totals


@torch.no_grad()
def scores_of(model, sequences, start, **inputs):
    """Log-probabilities of the pixels from column `start` on, (B, pixels)."""
    logits = model(sequences[:, :-1], use_cache=False, **inputs).logits.float()[:, start - 1 :]
    return logits.log_softmax(-1).gather(-1, sequences[:, start:, None])[..., 0]
