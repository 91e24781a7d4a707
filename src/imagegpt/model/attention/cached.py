"""Attention of new pixels over a preallocated cache, for sampling with torch operations.

Axes: B images, H heads, N queries, S cached positions, D head width.
"""

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional


def cached_attention(
    module: nn.Module,
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b h s d"],
    value: Float[Tensor, "b h s d"],
    attention_mask: Bool[Tensor, "b 1 n s"],
    scaling: float,
    **kwargs: Any,
) -> tuple[Float[Tensor, "b n h d"], None]:
    """Attend in the dtype of the stored keys and values; torch accumulates in float32."""
    mixed = functional.scaled_dot_product_attention(
        query.to(key.dtype), key, value, attn_mask=attention_mask, scale=scaling
    )
    return mixed.transpose(1, 2).to(query.dtype), None
