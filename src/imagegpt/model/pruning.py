"""Pruning of attention heads: the weights shrink, and `config.pruned_heads` lists the removed heads.

transformers 5 dropped head pruning; names (`prune_heads`, `config.pruned_heads`) and meaning are those of transformers
4. A head's index is always the one it had in the unpruned block.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from imagegpt.config import ImageGPTConfig
from imagegpt.model.layers import ImageGPTAttention, Projection


def prune_heads(
    config: ImageGPTConfig, attentions: Mapping[int, ImageGPTAttention], heads: Mapping[int, Iterable[int]]
) -> None:
    """Remove heads from the attention layers, and record them in `config.pruned_heads`.

    Args:
        config: the model's configuration; changed.
        attentions: block index -> its self-attention.
        heads: block index -> indices of the heads to remove; heads already removed are skipped.
    Raises: ValueError if a block or head does not exist, or a block would lose all heads; nothing changes then.
    """
    heads = {int(layer): list(indices) for layer, indices in heads.items()}
    pruned = {layer: set(indices) for layer, indices in (config.pruned_heads or {}).items()}
    for layer, indices in heads.items():
        pruned[layer] = pruned.get(layer, set()) | set(indices)
    # Validate the indices on a copy, so that an error leaves the model unchanged.
    new_config = ImageGPTConfig.from_dict(
        {**config.to_dict(), "pruned_heads": {layer: sorted(indices) for layer, indices in pruned.items() if indices}}
    )
    for layer in heads:
        _keep_heads(attentions[layer], new_config.kept_heads(layer))
    config.pruned_heads = new_config.pruned_heads


def _keep_heads(attention: ImageGPTAttention, kept: list[int]) -> None:
    """Shrink the layer to the heads whose original indices are `kept`."""
    current = [attention.kept_heads.index(head) for head in kept]
    channels = torch.arange(attention.head_dim)
    index = torch.cat([i * attention.head_dim + channels for i in current])  # of queries, keys or values
    inner = len(attention.kept_heads) * attention.head_dim
    _select(attention.c_attn, torch.cat([index, index + inner, index + 2 * inner]), dim=1)
    _select(attention.c_proj, index, dim=0)
    attention.kept_heads = kept


def _select(projection: Projection, index: torch.Tensor, dim: int) -> None:
    """Keep the indexed inputs (dim 0) or outputs (dim 1) of a projection."""
    index = index.to(projection.weight.device)
    with torch.no_grad():
        weight = projection.weight.index_select(dim, index)
        projection.weight = nn.Parameter(weight, requires_grad=projection.weight.requires_grad)
        if dim == 1 and projection.bias is not None:
            bias = projection.bias.index_select(0, index)
            projection.bias = nn.Parameter(bias, requires_grad=projection.bias.requires_grad)
    projection.nx, projection.nf = projection.weight.shape
