"""Our C++ attention as a backend of transformers: `attn_implementation="kernels"`.

On a CPU it takes half the time of torch's, forward and backward, where there is no mask and no dropout. Everywhere else
torch's `sdpa` is called.
"""

import functools
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from imagegpt.kernels import attention
from imagegpt.model import tracing

NAME = "kernels"


@functools.cache
def has_kernels() -> bool:
    """Whether the kernels can be called; compiles them if need be, and warns once if that fails."""
    try:
        attention.load()
    except Exception as error:  # noqa: BLE001 - no compiler, no disk: all the same here
        warnings.warn(f"attention is torch's, and slower: {' '.join(str(error).split())}", stacklevel=2)
        return False
    return True


def kernel_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    is_causal: bool = True,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As `reference.eager_attention_forward`, without head masks and without weights to return."""
    is_plain = attention_mask is None and not dropout and (not is_causal or query.shape[2] == key.shape[2])
    if is_plain and attention.can_attend(query, key, value) and _is_ready(query, key, value):
        return attention.attention(query, key, value, scaling, is_causal), None
    out, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
    )
    return out, None


def _is_ready(*tensors: Tensor) -> bool:
    """Whether the kernels can be called here: not under `torch.func`, forward-mode derivatives or fake tensors."""
    if torch.compiler.is_compiling():
        return attention.is_loaded()
    is_plain = not tracing.is_traced() and forward_ad._current_level < 0 and all(map(tracing.is_plain, tensors))
    return is_plain and has_kernels()


ALL_ATTENTION_FUNCTIONS.register(NAME, kernel_attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
