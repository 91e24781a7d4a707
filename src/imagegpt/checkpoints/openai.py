"""OpenAI's variables and ours: names, layouts, and back.

    theirs                          shape                       ours                            layout
    model/wte, model/sos            (V, C), (C,)                transformer.wte                 sos is the last row
    model/wpe                       (T, C)                      transformer.wpe
    model/h0/ln_1/g                 (C,)                        transformer.h.0.ln_1
    model/h0/attn/{q,k,v}_proj      (H, D, C)                   transformer.h.0.attn.c_attn     (C, 3 C), side by side
    model/h0/attn/c_proj            (H, D, C)                   transformer.h.0.attn.c_proj     (C, C), rows are H x D
    model/h0/mlp/{c_fc,c_proj}/w    (C, 4 C), (4 C, C)          transformer.h.0.mlp             the same
    model/ln_f/g                    (C,)                        transformer.ln_f
    model/wtet                      (V, C)                      lm_head
    model/clf/wclf                  (K, C)                      score                           optional

A BERT checkpoint has no sos; our last row is zero then. All sizes, heads included, are read off the shapes.

Source: the original repository, src/model.py. Axes: V colours, T pixels, C channels, H heads, D head width, K classes.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from imagegpt.common.text import printable
from imagegpt.config import ImageGPTConfig

_BLOCK = re.compile(r"model/h([0-9]{1,4})/(.+)")
_IN_BLOCK = (
    "ln_1/g", "attn/q_proj", "attn/k_proj", "attn/v_proj", "attn/c_proj", "ln_2/g", "mlp/c_fc/w", "mlp/c_proj/w",
)  # fmt: skip
_OUTSIDE = ("model/wte", "model/wpe", "model/wtet", "model/ln_f/g")
_SOS, _CLASSES, _STEP = "model/sos", "model/clf/wclf", "global_step"
_NOT_WEIGHTS = re.compile(
    r"(.*/)?(global_step|beta[12]_power|save_counter|_CHECKPOINTABLE_OBJECT_GRAPH)(/.*)?"
    r"|.*/(Adam|Adam_1|adam_[mv]|Momentum|AdamWeightDecayOptimizer(_1)?|ExponentialMovingAverage)"
)
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_SHOWN = 5  # names in an error


@dataclass(frozen=True, kw_only=True)
class OpenAIModel:
    """What a checkpoint of OpenAI's holds, in our terms.

    Attributes:
        config: of the model.
        weights: of `ImageGPTForCausalImageModeling`, by name, in the checkpoint's dtype.
        classifier: `score.weight` (K, C), if there is one.
        step: updates that were made, if the checkpoint tells.
        ignored: variables that are not the model's: moments, counters.
    """

    config: ImageGPTConfig
    weights: dict[str, Tensor]
    classifier: Shaped[Tensor, "k c"] | None
    step: int | None
    ignored: list[str]


def from_openai(variables: Mapping[str, np.ndarray], *, biases: bool = False) -> OpenAIModel:
    """Weights and configuration from OpenAI's variables.

    Args:
        variables: by name, for example a `TensorBundle`; each is read once.
        biases: give every projection a bias of zeros, which transformers wants.
    Raises: ValueError, in one sentence that lists them, if variables are missing, not known, or do not fit together.
    """
    names, ignored = _sorted_out(variables)
    num_layers = 1 + max((int(match[1]) for match in map(_BLOCK.fullmatch, names) if match), default=-1)
    _check_names(names, num_layers)
    is_causal = _SOS in names
    wte, wpe = variables["model/wte"], variables["model/wpe"]
    query, inner = variables["model/h0/attn/q_proj"], variables["model/h0/mlp/c_fc/w"]
    if (wte.ndim, wpe.ndim, query.ndim, inner.ndim) != (2, 2, 3, 2):
        raise ValueError(
            f"wte, wpe, q_proj and c_fc/w have the shapes {wte.shape}, {wpe.shape}, {query.shape} and {inner.shape}: "
            "they must have 2, 2, 3 and 2 axes"
        )
    config = ImageGPTConfig(
        vocab_size=len(wte) + 1, n_positions=len(wpe), n_embd=wte.shape[1], n_layer=num_layers, n_head=len(query),
        n_inner=None if inner.shape[1] == 4 * wte.shape[1] else inner.shape[1], is_causal=is_causal, use_bias=biases,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, init_scheme="openai",
    )  # fmt: skip
    shapes = _shapes(config)

    def read(name: str) -> Tensor:
        array = variables[name]
        if array.shape != shapes[name]:
            raise ValueError(f"{name} has the shape {array.shape}, where the other variables want {shapes[name]}")
        return _tensor(name, array)

    weights = _ours(config, read)
    if biases:
        weights |= _zero_biases(weights)
    classifier = _tensor(_CLASSES, variables[_CLASSES]) if _CLASSES in names else None
    if classifier is not None and (classifier.ndim != 2 or classifier.shape[1] != config.n_embd):
        raise ValueError(f"{_CLASSES} has the shape {tuple(classifier.shape)}: it must be (classes, {config.n_embd})")
    step = _step(variables[_STEP]) if _STEP in variables else None
    return OpenAIModel(config=config, weights=weights, classifier=classifier, step=step, ignored=ignored)


def to_openai(config: ImageGPTConfig, weights: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """OpenAI's variables from a model.

    Args:
        config: of the model.
        weights: its `state_dict`; of a classifier's, `score.weight` goes along.
    Raises: ValueError, in one sentence, for what OpenAI's code cannot compute: biases that are not zero, pruned heads,
        cross-attention, another activation and the like.
    """
    _check_exportable(config, weights)
    num_heads, width = config.n_head, config.n_embd // config.n_head
    out: dict[str, Tensor] = {
        "model/wte": weights["transformer.wte.weight"][:-1],
        "model/wpe": weights["transformer.wpe.weight"],
        "model/wtet": weights["lm_head.weight"],
        "model/ln_f/g": weights["transformer.ln_f.weight"],
    }
    if config.is_causal:
        out[_SOS] = weights["transformer.wte.weight"][-1]
    if "score.weight" in weights:
        out[_CLASSES] = weights["score.weight"]
    for layer in range(config.n_layer):
        ours, theirs = f"transformer.h.{layer}", f"model/h{layer}"
        for name, part in zip("qkv", weights[f"{ours}.attn.c_attn.weight"].chunk(3, dim=1), strict=True):
            out[f"{theirs}/attn/{name}_proj"] = part.t().reshape(num_heads, width, config.n_embd)
        out[f"{theirs}/attn/c_proj"] = weights[f"{ours}.attn.c_proj.weight"].reshape(num_heads, width, config.n_embd)
        for name in ("c_fc", "c_proj"):
            out[f"{theirs}/mlp/{name}/w"] = weights[f"{ours}.mlp.{name}.weight"]
        for name in ("ln_1", "ln_2"):
            out[f"{theirs}/{name}/g"] = weights[f"{ours}.{name}.weight"]
    return {name: _array(tensor) for name, tensor in out.items()}


def _ours(config: ImageGPTConfig, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    channels = config.n_embd
    wte = read("model/wte")
    sos = read(_SOS) if config.is_causal else wte.new_zeros(channels)
    weights = {
        "transformer.wte.weight": torch.cat([wte, sos.unsqueeze(0)]),
        "transformer.wpe.weight": read("model/wpe"),
        "transformer.ln_f.weight": read("model/ln_f/g"),
        "lm_head.weight": read("model/wtet"),
    }
    for layer in range(config.n_layer):
        ours, theirs = f"transformer.h.{layer}", f"model/h{layer}"
        parts = [read(f"{theirs}/attn/{name}_proj").reshape(channels, channels).t() for name in "qkv"]
        weights |= {
            f"{ours}.ln_1.weight": read(f"{theirs}/ln_1/g"),
            f"{ours}.attn.c_attn.weight": torch.cat(parts, dim=1),
            f"{ours}.attn.c_proj.weight": read(f"{theirs}/attn/c_proj").reshape(channels, channels),
            f"{ours}.ln_2.weight": read(f"{theirs}/ln_2/g"),
            f"{ours}.mlp.c_fc.weight": read(f"{theirs}/mlp/c_fc/w"),
            f"{ours}.mlp.c_proj.weight": read(f"{theirs}/mlp/c_proj/w"),
        }
    return weights


def _zero_biases(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    projections = (name for name in weights if re.search(r"\.c_(attn|proj|fc)\.weight$", name))
    return {
        name.removesuffix("weight") + "bias": weights[name].new_zeros(weights[name].shape[1]) for name in projections
    }


def _shapes(config: ImageGPTConfig) -> dict[str, tuple[int, ...]]:
    """What shapes the variables must have, once the sizes are known."""
    colors, channels, inner = config.num_colors, config.n_embd, config.inner_size
    heads = (config.n_head, channels // config.n_head, channels)
    block = [(channels,), heads, heads, heads, heads, (channels,), (channels, inner), (inner, channels)]
    shapes: dict[str, tuple[int, ...]] = {
        "model/wte": (colors, channels), "model/wpe": (config.n_positions, channels), "model/wtet": (colors, channels),
        "model/ln_f/g": (channels,), _SOS: (channels,),
    }  # fmt: skip
    for layer in range(config.n_layer):
        shapes |= {f"model/h{layer}/{name}": shape for name, shape in zip(_IN_BLOCK, block, strict=True)}
    return shapes


def _sorted_out(variables: Iterable[str]) -> tuple[set[str], list[str]]:
    """Names of weights, or what may be weights, and of what is none."""
    ignored = sorted(name for name in variables if _NOT_WEIGHTS.fullmatch(name))
    return set(variables) - set(ignored), ignored


def _check_names(names: set[str], num_layers: int) -> None:
    wanted = {*_OUTSIDE, *(f"model/h{layer}/{name}" for layer in range(max(1, num_layers)) for name in _IN_BLOCK)}
    for what, some in (("lacks", wanted - names), ("has", names - wanted - {_SOS, _CLASSES})):
        if some:
            listed = ", ".join(printable(name[:80]) for name in sorted(some)[:_SHOWN]) + (
                f" and {len(some) - _SHOWN} more" if len(some) > _SHOWN else ""
            )
            known = "" if what == "lacks" else ", which are not ImageGPT's"
            raise ValueError(f"this is no checkpoint of OpenAI's ImageGPT: it {what} {listed}{known}")


def _check_exportable(config: ImageGPTConfig, weights: Mapping[str, Tensor]) -> None:
    biases = [name for name, weight in weights.items() if name.endswith(".bias") and weight.any()]
    other = {
        "pruned heads": bool(config.pruned_heads),
        "cross-attention": config.add_cross_attention,
        "scaling by the layer's number": config.scale_attn_by_inverse_layer_idx,
        "unscaled attention": not config.scale_attn_weights,
        f"the activation {config.activation_function}": config.activation_function != "quick_gelu",
        f"the epsilon {config.layer_norm_epsilon}": config.layer_norm_epsilon != 1e-5,
        f"the inner width {config.inner_size}": config.inner_size != 4 * config.n_embd,
        f"biases, such as {biases[0] if biases else ''}": bool(biases),
        "no head for pixels": "lm_head.weight" not in weights,
    }
    reasons = [reason for reason, is_so in other.items() if is_so]
    if reasons:
        raise ValueError(f"OpenAI's code has no place for this model: it has {', '.join(reasons)}")


def _step(counter: np.ndarray) -> int:
    """The number of updates, which is a single whole number."""
    if counter.size != 1 or counter.dtype.kind not in "iu":
        raise ValueError(f"{_STEP} is {counter.dtype} of the shape {counter.shape}: it must be one whole number")
    return int(counter.item())


def _tensor(name: str, array: np.ndarray) -> Tensor:
    """A tensor of its own; bfloat16 of ml_dtypes as torch's."""
    if array.dtype.name not in _FLOATS:
        raise ValueError(f"{name} is of type {array.dtype}: weights must be one of {', '.join(_FLOATS)}")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _array(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        from imagegpt.checkpoints.tensor_bundle import numpy_type

        return tensor.view(torch.uint16).numpy().view(numpy_type("bfloat16"))
    return tensor.numpy()
