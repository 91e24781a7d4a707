"""Mapping between OpenAI's variables and our weights, in both directions.

    variable                        shape                       weight                          layout
    model/wte, model/sos            (V, C), (C,)                transformer.wte                 sos is the last row
    model/wpe                       (T, C)                      transformer.wpe
    model/h0/ln_1/g                 (C,)                        transformer.h.0.ln_1
    model/h0/attn/{q,k,v}_proj      (H, D, C)                   transformer.h.0.attn.c_attn     (C, 3 C), concatenated
    model/h0/attn/c_proj            (H, D, C)                   transformer.h.0.attn.c_proj     (C, C), rows are H x D
    model/h0/mlp/{c_fc,c_proj}/w    (C, 4 C), (4 C, C)          transformer.h.0.mlp             the same
    model/ln_f/g                    (C,)                        transformer.ln_f
    model/wtet                      (V, C)                      lm_head
    model/clf/wclf                  (K, C)                      score                           optional

A BERT checkpoint has no sos; the last row of `wte` is then zero. All sizes, including the number of heads, follow from
the shapes.

Source: the original repository, src/model.py. Axes: V colours, T pixels, C channels, H heads, D head width, K classes.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from imagegpt.common.text import printable
from imagegpt.config import ImageGPTConfig

_BLOCK = re.compile(r"model/h([0-9]{1,4})/(.+)")
_BLOCK_VARIABLES = (
    "ln_1/g", "attn/q_proj", "attn/k_proj", "attn/v_proj", "attn/c_proj", "ln_2/g", "mlp/c_fc/w", "mlp/c_proj/w",
)  # fmt: skip
_OTHER_VARIABLES = ("model/wte", "model/wpe", "model/wtet", "model/ln_f/g")
_SOS, _CLASSIFIER, _STEP = "model/sos", "model/clf/wclf", "global_step"
_OPTIMIZER_STATE = re.compile(
    r"(.*/)?(global_step|beta[12]_power|save_counter|_CHECKPOINTABLE_OBJECT_GRAPH)(/.*)?"
    r"|.*/(Adam|Adam_1|adam_[mv]|Momentum|AdamWeightDecayOptimizer(_1)?|ExponentialMovingAverage)"
)
_FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")
_MAX_LISTED = 5  # names in an error


@dataclass(frozen=True, kw_only=True)
class OpenAIModel:
    """The contents of an OpenAI checkpoint, converted.

    Attributes:
        weights: of `ImageGPTForCausalImageModeling`, by name, in the checkpoint's dtype.
        classifier: `score.weight` (K, C), or None.
        step: number of training steps, or None if the checkpoint does not contain it.
        ignored: variables that are not weights: moments, counters.
    """

    config: ImageGPTConfig
    weights: dict[str, Tensor]
    classifier: Shaped[Tensor, "k c"] | None
    step: int | None
    ignored: list[str]


def from_openai(variables: Mapping[str, np.ndarray], *, biases: bool = False) -> OpenAIModel:
    """Convert OpenAI's variables to weights and configuration.

    Args:
        variables: by name, for example a `TensorBundle`; each is read once.
        biases: add a bias of zeros to every projection, which transformers expects.
    Raises: ValueError, in one sentence that lists them, if variables are missing, unknown, or inconsistent.
    """
    ignored = sorted(name for name in variables if _OPTIMIZER_STATE.fullmatch(name))
    names = set(variables) - set(ignored)
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
            raise ValueError(f"{name} has the shape {array.shape}, but the other variables imply {shapes[name]}")
        return _tensor(name, array)

    weights = _convert_weights(config, read)
    if biases:
        weights |= _zero_biases(weights)
    classifier = _tensor(_CLASSIFIER, variables[_CLASSIFIER]) if _CLASSIFIER in names else None
    if classifier is not None and (classifier.ndim != 2 or classifier.shape[1] != config.n_embd):
        raise ValueError(
            f"{_CLASSIFIER} has the shape {tuple(classifier.shape)}: it must be (classes, {config.n_embd})"
        )
    step = _step(variables[_STEP]) if _STEP in variables else None
    return OpenAIModel(config=config, weights=weights, classifier=classifier, step=step, ignored=ignored)


def to_openai(config: ImageGPTConfig, weights: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Convert a model to OpenAI's variables.

    Args:
        weights: its `state_dict`; `score.weight` of a classifier may be added.
    Raises: ValueError, in one sentence, for features that OpenAI's code does not support: biases that are not zero,
        pruned heads, cross-attention, other activations and the like.
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
        out[_CLASSIFIER] = weights["score.weight"]
    for layer in range(config.n_layer):
        block, variable = f"transformer.h.{layer}", f"model/h{layer}"
        for name, matrix in zip("qkv", weights[f"{block}.attn.c_attn.weight"].chunk(3, dim=1), strict=True):
            out[f"{variable}/attn/{name}_proj"] = matrix.t().reshape(num_heads, width, config.n_embd)
        c_proj = weights[f"{block}.attn.c_proj.weight"]
        out[f"{variable}/attn/c_proj"] = c_proj.reshape(num_heads, width, config.n_embd)
        for name in ("c_fc", "c_proj"):
            out[f"{variable}/mlp/{name}/w"] = weights[f"{block}.mlp.{name}.weight"]
        for name in ("ln_1", "ln_2"):
            out[f"{variable}/{name}/g"] = weights[f"{block}.{name}.weight"]
    return {name: _to_numpy(tensor) for name, tensor in out.items()}


def _convert_weights(config: ImageGPTConfig, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
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
        block, variable = f"transformer.h.{layer}", f"model/h{layer}"
        qkv = [read(f"{variable}/attn/{name}_proj").reshape(channels, channels).t() for name in "qkv"]
        weights |= {
            f"{block}.ln_1.weight": read(f"{variable}/ln_1/g"),
            f"{block}.attn.c_attn.weight": torch.cat(qkv, dim=1),
            f"{block}.attn.c_proj.weight": read(f"{variable}/attn/c_proj").reshape(channels, channels),
            f"{block}.ln_2.weight": read(f"{variable}/ln_2/g"),
            f"{block}.mlp.c_fc.weight": read(f"{variable}/mlp/c_fc/w"),
            f"{block}.mlp.c_proj.weight": read(f"{variable}/mlp/c_proj/w"),
        }
    return weights


def _zero_biases(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    projections = (name for name in weights if re.search(r"\.c_(attn|proj|fc)\.weight$", name))
    return {
        name.removesuffix("weight") + "bias": weights[name].new_zeros(weights[name].shape[1]) for name in projections
    }


def _shapes(config: ImageGPTConfig) -> dict[str, tuple[int, ...]]:
    colors, channels, inner = config.num_colors, config.n_embd, config.inner_size
    heads = (config.n_head, channels // config.n_head, channels)
    block = [(channels,), heads, heads, heads, heads, (channels,), (channels, inner), (inner, channels)]
    shapes: dict[str, tuple[int, ...]] = {
        "model/wte": (colors, channels), "model/wpe": (config.n_positions, channels), "model/wtet": (colors, channels),
        "model/ln_f/g": (channels,), _SOS: (channels,),
    }  # fmt: skip
    for layer in range(config.n_layer):
        shapes |= {f"model/h{layer}/{name}": shape for name, shape in zip(_BLOCK_VARIABLES, block, strict=True)}
    return shapes


def _check_names(names: set[str], num_layers: int) -> None:
    blocks = (f"model/h{layer}/{name}" for layer in range(max(1, num_layers)) for name in _BLOCK_VARIABLES)
    required = {*_OTHER_VARIABLES, *blocks}
    for verb, wrong in (("lacks", required - names), ("has", names - required - {_SOS, _CLASSIFIER})):
        if wrong:
            listed = ", ".join(printable(name[:80]) for name in sorted(wrong)[:_MAX_LISTED])
            listed += f" and {len(wrong) - _MAX_LISTED} more" if len(wrong) > _MAX_LISTED else ""
            suffix = "" if verb == "lacks" else ", which are not ImageGPT's"
            raise ValueError(f"this is not a checkpoint of OpenAI's ImageGPT: it {verb} {listed}{suffix}")


def _check_exportable(config: ImageGPTConfig, weights: Mapping[str, Tensor]) -> None:
    biases = [name for name, weight in weights.items() if name.endswith(".bias") and weight.any()]
    unsupported = {
        "pruned heads": bool(config.pruned_heads),
        "cross-attention": config.add_cross_attention,
        "scaling by layer index": config.scale_attn_by_inverse_layer_idx,
        "unscaled attention": not config.scale_attn_weights,
        f"the activation {config.activation_function}": config.activation_function != "quick_gelu",
        f"the epsilon {config.layer_norm_epsilon}": config.layer_norm_epsilon != 1e-5,
        f"the inner width {config.inner_size}": config.inner_size != 4 * config.n_embd,
        f"biases, such as {biases[0] if biases else ''}": bool(biases),
        "no generative head": "lm_head.weight" not in weights,
    }
    reasons = [reason for reason, applies in unsupported.items() if applies]
    if reasons:
        raise ValueError(f"OpenAI's code does not support this model: it has {', '.join(reasons)}")


def _step(counter: np.ndarray) -> int:
    """Return the number of training steps, a single integer."""
    if counter.size != 1 or counter.dtype.kind not in "iu":
        raise ValueError(f"{_STEP} is {counter.dtype} of the shape {counter.shape}: it must be one integer")
    return int(counter.item())


def _tensor(name: str, array: np.ndarray) -> Tensor:
    """Copy an array to a tensor; bfloat16 of ml_dtypes becomes torch's."""
    if array.dtype.name not in _FLOAT_DTYPES:
        raise ValueError(f"{name} is of type {array.dtype}: weights must be one of {', '.join(_FLOAT_DTYPES)}")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _to_numpy(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        from imagegpt.checkpoints.bundle_index import numpy_dtype

        return tensor.view(torch.uint16).numpy().view(numpy_dtype("bfloat16"))
    return tensor.numpy()
