"""A reference ImageGPT in NumPy and float64, written from the paper's equations, independent of both implementations.

It takes a state dict and a configuration, knows nothing of torch's kernels, masks or caches, and loops where a loop is
clearer. Agreement to 1e-12 with it is agreement with the definition.

Axes: B images, T positions, E encoder positions, H heads, D head width, C channels, V colours.
"""

import numpy as np

ACTIVATIONS = {
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
}


def as_numpy(state_dict):
    return {name: tensor.detach().double().cpu().numpy() for name, tensor in state_dict.items()}


def norm(x, gain, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain


def softmax(scores):
    exp = np.exp(scores - scores.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def project(x, weights, name):
    return x @ weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0.0)


def attend(query, key, value, allowed, num_heads, scaling, head_factors=None):
    """Mix (B, S, C') values for (B, T, C') queries; `allowed` is (B, T, S), True where query t may see key s."""
    mixed = np.zeros_like(query)
    width = query.shape[-1] // num_heads
    for head in range(num_heads):
        part = slice(head * width, (head + 1) * width)
        scores = np.einsum("btd,bsd->bts", query[..., part], key[..., part]) * scaling
        weights = softmax(np.where(allowed, scores, -np.inf))
        if head_factors is not None:
            weights = weights * head_factors[head]
        mixed[..., part] = np.einsum("bts,bsd->btd", weights, value[..., part])
    return mixed


def features(
    state_dict, config, ids, allowed=None, encoded=None, encoder_allowed=None, head_mask=None, token_types=None
):
    """Features (B, T, C) after the final norm, and the residual stream before each block, from a state dict.

    Args:
        state_dict: of an `ImageGPTModel`.
        config: its configuration.
        ids: (B, T) token ids.
        allowed: (B, T, T) booleans in place of the causal (or bidirectional) rule.
        encoded: (B, E, C), what the cross-attention sees.
        encoder_allowed: (B, E) booleans.
        head_mask: (L, H) factors.
        token_types: (B, T) ids whose embeddings are added.
    """
    weights, ids = as_numpy(state_dict), np.asarray(ids)
    num_images, length = ids.shape
    eps, num_heads = config.layer_norm_epsilon, config.n_head
    width = config.n_embd // num_heads
    activation = ACTIVATIONS[config.activation_function]
    if allowed is None:
        causal = np.tril(np.ones((length, length), dtype=bool))
        allowed = np.broadcast_to(causal if config.is_causal else np.ones_like(causal), (num_images, length, length))

    x = weights["wte.weight"][ids] + weights["wpe.weight"][:length]
    if token_types is not None:
        x = x + weights["wte.weight"][np.asarray(token_types)]
    streams = []
    for layer in range(config.n_layer):
        streams.append(x)
        scaling = (width**-0.5 if config.scale_attn_weights else 1.0) / (
            layer + 1 if config.scale_attn_by_inverse_layer_idx else 1
        )
        here = f"h.{layer}"
        factors = None if head_mask is None else np.asarray(head_mask)[layer]
        normed = norm(x, weights[f"{here}.ln_1.weight"], eps)
        query, key, value = np.split(project(normed, weights, f"{here}.attn.c_attn"), 3, axis=-1)
        mixed = attend(query, key, value, allowed, num_heads, scaling, factors)
        x = x + project(mixed, weights, f"{here}.attn.c_proj")
        if encoded is not None:
            seen = np.ones(encoded.shape[:2], dtype=bool) if encoder_allowed is None else np.asarray(encoder_allowed)
            seen = np.broadcast_to(seen[:, None, :], (num_images, length, encoded.shape[1]))
            query = project(
                norm(x, weights[f"{here}.ln_cross_attn.weight"], eps), weights, f"{here}.crossattention.q_attn"
            )
            key, value = np.split(project(np.asarray(encoded), weights, f"{here}.crossattention.c_attn"), 2, axis=-1)
            mixed = attend(query, key, value, seen, num_heads, scaling)
            x = x + project(mixed, weights, f"{here}.crossattention.c_proj")
        normed = norm(x, weights[f"{here}.ln_2.weight"], eps)
        x = x + project(activation(project(normed, weights, f"{here}.mlp.c_fc")), weights, f"{here}.mlp.c_proj")
    return norm(x, weights["ln_f.weight"], eps), streams


def base_state(model):
    """The state dict of the model without its head."""
    return model.base_model.state_dict()


def logits(model, ids, **kwargs):
    """The logits (B, T, V) of an `ImageGPTForCausalImageModeling`."""
    last, _ = features(base_state(model), model.config, ids, **kwargs)
    return last @ as_numpy(model.state_dict())["lm_head.weight"].T


def pixel_nll(all_logits, ids):
    """Mean nats per pixel of (B, T) ids, the first being the start token; logits t predict id t + 1."""
    total, count = 0.0, 0
    for image_logits, image in zip(all_logits, np.asarray(ids), strict=True):
        for position, target in enumerate(image[1:]):
            row = image_logits[position]
            total += np.log(np.exp(row - row.max()).sum()) + row.max() - row[target]
            count += 1
    return total / count
