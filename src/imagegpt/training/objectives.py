"""What training minimises.

Axis letters: B images, T pixels in raster order, V colours (the start token, sos, has id V).
"""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from imagegpt.model.layers import at_least_float32
from imagegpt.model.modeling import ImageGPTForCausalImageModeling


def with_start_token(ids: Int[Tensor, "b t"], sos: int) -> Int[Tensor, "b t"]:
    """What a model is fed to predict `ids`: the start token and all pixels but the last, which predicts nothing.

    Args:
        ids: pixels in raster order.
        sos: id of the start token, `config.sos_token_id`.
    """
    return functional.pad(ids[:, :-1], (1, 0), value=sos)


def autoregressive_loss(model: ImageGPTForCausalImageModeling, ids: Int[Tensor, "b t"]) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of a pixel given those before it, in nats, over all T pixels.

    Args:
        model: a causal model with at least T positions; it is used in the mode it is in (dropout or not).
        ids: pixels in raster order, 0 to V - 1.
    Returns: a scalar with gradient, in float32 or better whatever the model's dtype.
    Raises: ValueError if the model is bidirectional.
    Source: the paper, section on pre-training objectives; the first pixel is predicted from the start token alone.
    """
    if not model.config.is_causal:
        raise ValueError("this model is bidirectional (is_causal=False): the autoregressive loss needs a causal one")
    logits = model(with_start_token(ids, model.config.sos_token_id), use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1).to(at_least_float32(logits.dtype)), ids.flatten())
