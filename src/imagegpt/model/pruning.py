"""Removing attention heads, for good: the weights shrink, and the configuration remembers which heads went.

transformers 5 dropped head pruning; the names (`prune_heads`, `config.pruned_heads`) and the meaning here are those of
transformers 4. Heads are always named by their index in the unpruned block, however many went before them.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from imagegpt.config import ImageGPTConfig
from imagegpt.model.layers import ImageGPTAttention, Projection


def prune_heads(
    config: ImageGPTConfig, attentions: Mapping[int, ImageGPTAttention], heads: Mapping[int, Iterable[int]]
) -> None:
    """Remove heads from the attention layers, and note them in `config.pruned_heads`.

    Args:
        config: the model's configuration; changed.
        attentions: block index -> its self-attention.
        heads: block index -> indices of the heads to remove; heads that are gone already are passed over.
    Raises: ValueError if a block or head does not exist, or a block would lose all heads; nothing is changed then.
    """
    heads = {int(layer): list(gone) for layer, gone in heads.items()}
    removed = {layer: set(gone) for layer, gone in (config.pruned_heads or {}).items()}
    for layer, more in heads.items():
        removed[layer] = removed.get(layer, set()) | set(more)
    # A copy checks the indices, so that a mistake leaves the model as it was.
    checked = ImageGPTConfig.from_dict(
        {**config.to_dict(), "pruned_heads": {layer: sorted(gone) for layer, gone in removed.items() if gone}}
    )
    for layer in heads:
        _keep_heads(attentions[layer], checked.kept_heads(layer))
    config.pruned_heads = checked.pruned_heads


def _keep_heads(attention: ImageGPTAttention, kept: list[int]) -> None:
    """Shrink the layer to the heads whose original indices are `kept`."""
    places = [attention.kept_heads.index(head) for head in kept]
    channels = torch.arange(attention.head_dim)
    one = torch.cat([place * attention.head_dim + channels for place in places])  # of queries, keys or values
    inner = len(attention.kept_heads) * attention.head_dim
    all_three = torch.cat([one, one + inner, one + 2 * inner])
    _select(attention.c_attn, all_three, dim=1)
    _select(attention.c_proj, one, dim=0)
    attention.kept_heads = kept


def _select(projection: Projection, index: torch.Tensor, dim: int) -> None:
    """Keep the chosen inputs (dim 0) or outputs (dim 1) of a projection."""
    index = index.to(projection.weight.device)
    with torch.no_grad():
        weight = projection.weight.index_select(dim, index)
        projection.weight = nn.Parameter(weight, requires_grad=projection.weight.requires_grad)
        if dim == 1 and projection.bias is not None:
            bias = projection.bias.index_select(0, index)
            projection.bias = nn.Parameter(bias, requires_grad=projection.bias.requires_grad)
    projection.nx, projection.nf = projection.weight.shape
