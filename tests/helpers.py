"""Tiny models and inputs for the tests, ours and the reference's, with weights that let no near miss through.

The reference is `transformers.models.imagegpt`. Fresh gains are ones and fresh biases zeros, for which many wrong
models are right by accident; `randomize` draws them all.
"""

import math
import re

import numpy as np
import torch
import transformers
from packaging.version import Version
from transformers.models.imagegpt import modeling_imagegpt as reference
from transformers.models.imagegpt.configuration_imagegpt import ImageGPTConfig as ReferenceConfig

from imagegpt import (
    ColorPalette,
    ImageGPTConfig,
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTModel,
)
from imagegpt.data.augmentation import find_augmentation
from imagegpt.data.datasets import TokenDataset

REFERENCE_CLASS = {
    ImageGPTModel: reference.ImageGPTModel,
    ImageGPTForCausalImageModeling: reference.ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification: reference.ImageGPTForImageClassification,
}

TINY = {"vocab_size": 17, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4}
STRIPES = (torch.arange(16).repeat(24, 1) + torch.arange(24)[:, None]) % 16
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def before_transformers(version):
    """Whether the installed transformers is older, as in `make lowest`, and cannot do what a test asks of it."""
    return Version(transformers.__version__) < Version(version)


def tiny_config(**overrides):
    """A configuration of the tests' usual size: 16 colours and sos, images of 4 x 4 pixels, no dropout."""
    return ImageGPTConfig(**{**TINY, **NO_DROPOUT, **overrides})


def randomize(model, seed=0):
    """Draw every parameter, gains and biases too, so that activations stay of the order of 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if ".act." in name:  # the parameters of an activation, PReLU's for one, mean something: only nudge them
                value = parameter.double() + 0.1 * noise
            elif parameter.ndim == 1:
                value = (1.0 if "ln_" in name else 0.0) + 0.3 * noise
            elif "wte" in name or "wpe" in name:
                value = noise
            else:  # matrices: Projections are (in, out), heads (out, in)
                fan_in = parameter.shape[1] if "lm_head" in name or "score" in name else parameter.shape[0]
                value = noise / math.sqrt(fan_in)
            parameter.copy_(value)
    return model


def tiny_model(model_class=ImageGPTForCausalImageModeling, seed=0, dtype=torch.float32, backend="sdpa", **overrides):
    """A randomised model of ours in evaluation mode."""
    model = randomize(model_class(tiny_config(**overrides)), seed).to(dtype).eval()
    model.set_attn_implementation(backend)
    return model


def reference_for(model, **overrides):
    """The reference with the configuration and weights of one of our models, strictly loaded, in its dtype."""
    options = {k: v for k, v in model.config.to_dict().items() if k in ReferenceConfig().to_dict()}
    options = {k: v for k, v in options.items() if k not in ("architectures", "model_type", "transformers_version")}
    theirs = REFERENCE_CLASS[type(model)](ReferenceConfig(**{**options, **overrides}))
    theirs.to(next(model.parameters()).dtype)
    theirs.load_state_dict(model.state_dict(), strict=True)
    return theirs.eval()


def card_scores(folder):
    """The table of a model's card: the first word of each row, and its nats per pixel."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    return {name: float(nats) for name, nats in re.findall(r"^\| (\w+)[^|]*\| (\d\.\d{4}) \|$", text, re.MULTILINE)}


def image_ids(batch=2, pixels=None, config=None, seed=0, sos=True):
    """(batch, pixels) ids; the first of them the start token if `sos`."""
    config = config or tiny_config()
    length = config.n_positions if pixels is None else pixels
    ids = torch.randint(0, config.vocab_size - 1, (batch, length), generator=torch.Generator().manual_seed(seed))
    if sos and length:
        ids[:, 0] = config.vocab_size - 1
    return ids


class StripeDataset(TokenDataset):
    """The stripes; the class of each is its first colour modulo 4."""

    palette = ColorPalette.grey(16)
    size = (4, 4)
    classes = ["0", "1", "2", "3"]  # noqa: RUF012 - as an attribute of `TokenDataset`
    augmentation = find_augmentation("none")

    def __len__(self):
        return len(STRIPES)

    def _read(self, indices, rngs):
        return STRIPES.numpy()[indices]

    @property
    def labels(self):
        return STRIPES.numpy()[:, 0] % 4

    @property
    def hashes(self):
        return np.arange(1, len(STRIPES) + 1, dtype=np.uint64)


def digit_ids(split):
    """The digits of a split as ids of the palette of 17 greys, (n, 64)."""
    from imagegpt.data.sources.digits import load_digits

    return torch.from_numpy(load_digits()[split].levels).long()


def largest_difference(a, b):
    """max |a - b| as a number, in float64; shapes must be the same."""
    assert a.shape == b.shape
    return (a.double() - b.double()).abs().max().item() if a.numel() else 0.0


def cache_bytes(backend):
    """Size of the keys and values that a sampling backend has allocated; shared prefixes count once."""
    if hasattr(backend, "_keys"):
        return sum(tensor.nbytes for tensor in (*backend._keys, *backend._values))
    rows = [row for row in backend._rows if row is not None]
    prefixes = {id(prefix): prefix.buffer.nbytes for _, prefix in rows if prefix is not None}
    return sum(buffer.nbytes for buffer, _ in rows) + sum(prefixes.values())
