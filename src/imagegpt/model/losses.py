"""The training losses on pixels, from a model and ids; the paper's two pre-training objectives.

Axis letters: B images, T pixels in raster order, V colours (the start token, sos, has id V).
"""

from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from imagegpt.model.modeling import ImageGPTForCausalImageModeling
from imagegpt.model.pixel_loss import cross_entropy


def with_start_token(ids: Int[Tensor, "b t"], sos: int) -> Int[Tensor, "b t"]:
    """Return the inputs that predict `ids`: the start token and all pixels but the last, which predicts nothing.

    Args:
        ids: pixels in raster order.
    """
    return functional.pad(ids[:, :-1], (1, 0), value=sos)


def masked_embeddings(model: Any, ids: Int[Tensor, "b t"], masked: Bool[Tensor, "b t"]) -> Float[Tensor, "b t c"]:
    """Return the inputs of a bidirectional model: colour embeddings, zero where a pixel is masked.

    Args:
        model: any model with a `transformer` that has embeddings `wte`.
    """
    return model.transformer.wte(ids).masked_fill(masked.unsqueeze(-1), 0)


def autoregressive_loss(model: ImageGPTForCausalImageModeling, ids: Int[Tensor, "b t"]) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of a pixel given those before it, in nats, over all T pixels.

    Args:
        model: a causal model with at least T positions, in train or eval mode as the caller wants it.
        ids: pixels in raster order, 0 to V - 1.
    Returns: a scalar with gradient, in float32 or better whatever the model's dtype.
    Raises: ValueError if the model is bidirectional.
    Source: the paper, section on pre-training objectives; the first pixel is predicted from the start token alone.
    """
    if not model.config.is_causal:
        raise ValueError("this model is bidirectional (is_causal=False): the autoregressive loss needs a causal one")
    logits = model(with_start_token(ids, model.config.sos_token_id), use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), ids.flatten())


def bert_loss(
    model: ImageGPTForCausalImageModeling, ids: Int[Tensor, "b t"], masked: Bool[Tensor, "b t"]
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of a masked pixel given the visible ones, in nats; see `masked_cross_entropy`.

    The colour embedding of a masked pixel is zero; its position embedding stays. There is no start token.

    Args:
        model: a bidirectional model with at least T positions, in train or eval mode as the caller wants it.
        ids: pixels in raster order, 0 to V - 1.
        masked: True where a pixel is hidden.
    Returns: a scalar with gradient, in float32 or better whatever the model's dtype.
    Raises: ValueError if the model is causal.
    Source: the paper, section on pre-training objectives, and the original code.
    """
    if model.config.is_causal:
        raise ValueError("this model is causal (is_causal=True): the BERT loss needs a bidirectional one")
    logits = model(inputs_embeds=masked_embeddings(model, ids, masked), use_cache=False).logits
    return masked_cross_entropy(logits, ids, masked)


def masked_cross_entropy(
    logits: Float[Tensor, "b t v"], ids: Int[Tensor, "b t"], masked: Bool[Tensor, "b t"]
) -> Float[Tensor, ""]:
    """Cross-entropy of the masked pixels, averaged within each image and then over the batch, in float32 or better.

    An image without masked pixels counts as 0.
    """
    nats = cross_entropy(logits.transpose(1, 2), ids, reduction="none")
    return ((nats * masked).sum(dim=1) / masked.sum(dim=1).clamp(min=1)).mean()
