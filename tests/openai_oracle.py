"""The original model's equations in NumPy and float64, on OpenAI's variables by their own names; see shared/paper.md.

Axes: B images, T pixels, C channels, V colours.
"""

import numpy as np


def norm(x, gain):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5) * gain


def random_variables(
    num_layers=3, num_heads=2, width=8, num_colors=11, num_pixels=16, *, bert=False, classes=0, seed=0
):
    """A random checkpoint, in float32."""
    rng = np.random.default_rng(seed)

    def draw(*shape, scale=0.3):
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    variables = {
        "model/wte": draw(num_colors, width),
        "model/wpe": draw(16, width),
        "model/wtet": draw(num_colors, width),
        "model/ln_f/g": 1 + draw(width),
    }
    if not bert:
        variables["model/sos"] = draw(width)
    if classes:
        variables["model/clf/wclf"] = draw(classes, width)
    for layer in range(num_layers):
        block = f"model/h{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "c_proj"):
            variables[f"{block}/attn/{name}"] = draw(num_heads, width // num_heads, width)
        variables[f"{block}/mlp/c_fc/w"], variables[f"{block}/mlp/c_proj/w"] = (
            draw(width, 4 * width),
            draw(4 * width, width),
        )
        variables[f"{block}/ln_1/g"], variables[f"{block}/ln_2/g"] = 1 + draw(width), 1 + draw(width)
    return variables


def forward(variables, ids, hidden=None):
    """The residual stream before each block and after the last, (L + 1, B, T, C), and the logits (B, T, V).

    Args:
        variables: by OpenAI's names.
        ids: (B, T) whole images.
        hidden: (B, T) which pixels are masked, for BERT; None shifts the input behind the start token.
    """
    weights = {name: np.asarray(array, np.float64) for name, array in variables.items()}
    stream = weights["model/wte"][ids]
    if hidden is None:
        sos = np.broadcast_to(weights["model/sos"], (len(ids), 1, stream.shape[-1]))
        stream = np.concatenate([sos, stream[:, :-1]], axis=1)
    else:
        stream = stream * ~hidden[..., None]
    stream = stream + weights["model/wpe"]
    seen, layer = [stream], 0
    while f"model/h{layer}/ln_1/g" in weights:
        block = f"model/h{layer}"
        stream = stream + attention(norm(stream, weights[f"{block}/ln_1/g"]), weights, block, is_causal=hidden is None)
        inner = norm(stream, weights[f"{block}/ln_2/g"]) @ weights[f"{block}/mlp/c_fc/w"]
        stream = stream + (inner / (1 + np.exp(-1.702 * inner))) @ weights[f"{block}/mlp/c_proj/w"]
        seen.append(stream)
        layer += 1
    return np.stack(seen), norm(stream, weights["model/ln_f/g"]) @ weights["model/wtet"].T


def attention(x, weights, block, *, is_causal):
    q, k, v = (np.einsum("bsf,hef->bhse", x, weights[f"{block}/attn/{name}_proj"]) for name in "qkv")
    scores = np.einsum("bhse,bhte->bhst", q, k) / np.sqrt(q.shape[-1])
    if is_causal:
        scores = np.where(np.tri(scores.shape[-1], dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return np.einsum("bhse,hef->bsf", np.einsum("bhst,bhte->bhse", shares, v), weights[f"{block}/attn/c_proj"])
