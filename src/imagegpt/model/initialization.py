"""Initialisation of new weights: the scheme of transformers, or that of OpenAI's training code.

    weight                     "transformers"          "openai"
    token embedding, sos       initializer_range       initializer_range
    position embedding         initializer_range       initializer_range / 2
    queries, keys, values      initializer_range       1 / sqrt(C)
    attention's output         range / sqrt(2 L)       1 / sqrt(C L)
    MLP, in and out            range, range / sqrt(2L) initializer_range
    logits, classifier         initializer_range       0
    gains 1, biases 0

All are standard deviations of normal distributions around 0; C is the width, L the number of blocks. With the default
range of 0.02 the right column is the original `src/model.py`. Its logits start at 0, so the loss of a new model is
ln(colours).
"""

import math

import torch
from torch import nn
from transformers import initialization as init  # skips weights loaded from a checkpoint

from imagegpt.config import ImageGPTConfig
from imagegpt.model.layers import ImageGPTAttention, ImageGPTLayerNorm, ImageGPTMLP, Projection


@torch.no_grad()
def initialize_module(module: nn.Module, config: ImageGPTConfig) -> None:
    """Initialise the weights of one module; parents come after their children and may override them."""
    if isinstance(module, ImageGPTLayerNorm):
        init.ones_(module.weight)
    elif isinstance(module, (Projection, nn.Linear, nn.Embedding)):
        init.normal_(module.weight, std=config.initializer_range)
        if isinstance(bias := getattr(module, "bias", None), torch.Tensor):
            init.zeros_(bias)
    elif isinstance(module, ImageGPTAttention):
        _initialize_attention(module, config)
    elif isinstance(module, ImageGPTMLP) and config.init_scheme == "transformers":
        init.normal_(module.c_proj.weight, std=config.initializer_range / math.sqrt(2 * config.n_layer))
    elif config.init_scheme == "openai":
        _initialize_embeddings_and_heads(module, config)


def _initialize_attention(attention: ImageGPTAttention, config: ImageGPTConfig) -> None:
    if config.init_scheme == "transformers":
        init.normal_(attention.c_proj.weight, std=config.initializer_range / math.sqrt(2 * config.n_layer))
        return
    init.normal_(attention.c_attn.weight, std=config.n_embd**-0.5)
    if attention.is_cross_attention:
        init.normal_(attention.q_attn.weight, std=config.n_embd**-0.5)
    init.normal_(attention.c_proj.weight, std=(config.n_embd * config.n_layer) ** -0.5)


def _initialize_embeddings_and_heads(module: nn.Module, config: ImageGPTConfig) -> None:
    # By their names in the parent: an nn.Embedding does not know whether it embeds tokens or positions.
    if isinstance(wpe := getattr(module, "wpe", None), nn.Embedding):
        init.normal_(wpe.weight, std=config.initializer_range / 2)
    for name in ("lm_head", "score"):
        if isinstance(head := getattr(module, name, None), nn.Linear):
            init.zeros_(head.weight)
