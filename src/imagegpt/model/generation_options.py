"""What may be asked of `generate()`: the prompt, the number of pixels and the options, checked before the first step.

Every function raises ValueError with one sentence. `options` are the options of one call: the model's generation
config, the one that was given, and the arguments, in this order.

Axes: B images, P positions of the prompt, S cached and new positions, C channels.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.generation.configuration_utils import SynthIDTextWatermarkingConfig

from imagegpt.config import ImageGPTConfig
from imagegpt.model import input_checks as door
from imagegpt.model.cache_names import CACHE

NO_PAGES = 'continuous batching is for texts of unknown length: give cache_implementation="dynamic" or "static"'
_NO_TEXT = "pixels are not text: to stop early, give eos_token_id or stopping_criteria"

# Arguments and options of `generate` that no ImageGPT can honour.
_REFUSED = {
    "pixel_values": "this model reads colour ids: give the input_ids of the processor, the start token in front",
    "stop_strings": _NO_TEXT,
    "token_healing": _NO_TEXT,
    "tokenizer": _NO_TEXT,
    "assistant_tokenizer": _NO_TEXT,
    "use_mtp": "this model has no heads for several pixels at once: give an assistant_model",
    "speculation_type": "ImageGPT has no drafting heads: give an assistant_model alone",
}

# Ways of generating in which pixels are taken back, or images change places, after a rule has seen them.
_TAKING_BACK = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")


def check_options(options: dict[str, Any], config: ImageGPTConfig, device: str, num_virtual_tokens: int) -> None:
    """Refuse what a model cannot do.

    Args:
        options: of this call.
        config: of the model.
        device: the type of the model's device.
        num_virtual_tokens: positions that peft puts in front of the prompt.
    """
    for name, reason in _REFUSED.items():
        value = options.get(name)
        if value is not None and value is not False:
            raise ValueError(f"{name} was given: {reason}")
    if options.get("prefill_chunk_size") is not None and options.get("inputs_embeds") is not None:
        raise ValueError("prefill_chunk_size was given with inputs_embeds: only ids are read in chunks, drop either")
    _check_cache(options.get("cache_implementation"), device, num_virtual_tokens)
    _check_rules(options)
    _check_colors(options, config.num_colors)
    _check_assistant(options.get("assistant_model"), config)


def _check_cache(kind: Any, device: str, num_virtual_tokens: int) -> None:
    """Refuse kinds of caches that cannot hold this call."""
    if kind == "paged":
        raise ValueError(f'cache_implementation="paged" was given: {NO_PAGES}')
    if isinstance(kind, str) and kind.startswith("offloaded") and device == "cpu":
        raise ValueError(
            f'cache_implementation="{kind}" was given for a model on the CPU, from which there is nowhere to offload '
            f'to: give "{"static" if "static" in kind else "dynamic"}"'
        )
    if num_virtual_tokens and isinstance(kind, str) and kind not in ("dynamic", "offloaded"):
        raise ValueError(
            f'cache_implementation="{kind}" was given with {num_virtual_tokens} virtual tokens of peft, for which '
            'transformers leaves no room in it: give "dynamic"'
        )


def _check_rules(options: dict[str, Any]) -> None:
    """Refuse rules that remember the pixels they have seen where others may be drawn.

    Guidance keeps a cache of its own, and SynthID the last pixels; neither is told when beams change places, or when
    guesses are thrown away.
    """
    ways = [name for name in _TAKING_BACK if options.get(name) is not None]
    ways += ["num_beams"] if (options.get("num_beams") or 1) > 1 else []
    rules = ["guidance_scale"] if options.get("guidance_scale") not in (None, 1) else []
    if isinstance(options.get("watermarking_config"), SynthIDTextWatermarkingConfig):
        rules.append("the watermarking_config of SynthID")
    if rules and ways:
        raise ValueError(
            f"{rules[0]} was given with {ways[0]}: it remembers the pixels it has seen and takes none back, drop either"
        )


def _check_colors(options: dict[str, Any], num_colors: int) -> None:
    """Refuse to force what is no colour."""
    names = ["forced_bos_token_id", "forced_eos_token_id"]
    if options.get("exponential_decay_length_penalty") is not None:
        names.append("eos_token_id")
        if options.get("eos_token_id") is None:
            raise ValueError("exponential_decay_length_penalty was given without eos_token_id: give both")
    for name in names:
        for color in torch.as_tensor([] if options.get(name) is None else options[name]).flatten().tolist():
            if not 0 <= color < num_colors:
                raise ValueError(f"{name} is {color}: this model draws the colours 0 to {num_colors - 1}")


def _check_assistant(assistant: Any, config: ImageGPTConfig) -> None:
    """Refuse an assistant with another palette, or with fewer positions."""
    theirs = getattr(assistant, "config", None)
    for name in ("vocab_size", "n_positions"):
        has, needed = getattr(theirs, name, None), getattr(config, name)
        if has is not None and (has < needed or (name == "vocab_size" and has != needed)):
            raise ValueError(
                f"assistant_model has {name}={has}, this model {needed}: give one that draws the same images"
            )


def checked_prompt(inputs: Tensor | None, options: dict[str, Any], width: int) -> tuple[Tensor | None, Tensor | None]:
    """Ids (B, P) and embeddings (B, E, C) of a prompt, of which one may be None; other shapes are refused.

    Args:
        inputs: the first argument of `generate`, which `input_ids` among the options may stand for.
        options: of this call.
        width: C.
    """
    ids, embeds = options.get("input_ids"), options.get("inputs_embeds")
    if inputs is not None and ids is not None:
        raise ValueError("inputs and input_ids were both given: they are one argument, drop either")
    ids = inputs if inputs is not None else ids
    for prompt, num_axes in ((ids, 2), (embeds, 3)):
        if prompt is None:
            continue
        if not isinstance(prompt, Tensor) or prompt.ndim != num_axes:
            given = tuple(prompt.shape) if isinstance(prompt, Tensor) else f"a {type(prompt).__name__}"
            raise ValueError(f"the prompt is {given}: give a tensor (images, positions), the start token first")
        if prompt.shape[0] == 0 or (prompt.shape[1] == 0 and (prompt is embeds or embeds is None)):
            raise ValueError(
                f"the prompt is {tuple(prompt.shape)}, which is empty: give at least the start token of one image, or "
                "no prompt at all"
            )
    if embeds is not None:
        door.check_embeddings(embeds, "inputs_embeds", width, None if ids is None else ids.shape[0])
    return ids, embeds


def num_new_pixels(
    ids: Tensor | None, embeds: Tensor | None, options: dict[str, Any], num_positions: int, num_virtual_tokens: int
) -> int:
    """Pixels to make: as many as are asked for, or else as the model has room for.

    Args:
        ids: (B, P), or None.
        embeds: (B, E, C), or None.
        options: of this call; the attention mask (B, S) may be longer than the prompt where a cache holds the rest, and
            its padding takes no room.
        num_positions: of the model.
        num_virtual_tokens: positions that peft puts in front of the prompt.
    """
    lengths = [x.shape[1] for x in (ids, embeds) if x is not None]
    columns, padding, mask = max(lengths), 0, options.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.numel():
        columns, padding = max(columns, mask.shape[1]), int((mask == 0).sum(1).min())
    cached = door.cached_length(options.get(CACHE)) or 0
    if cached and columns + num_virtual_tokens <= cached:
        raise ValueError(
            f"the prompt has {columns} positions and the cache holds {cached}: give all ids from the start token on, "
            "or an attention_mask that covers the cache and the new ids"
        )
    fed = columns - padding + num_virtual_tokens
    longest = num_positions + 1  # the last pixel is drawn, and never fed
    num_new = longest - fed
    if options.get("max_new_tokens") is not None:
        num_new = options["max_new_tokens"]
    elif options.get("max_length") is not None:
        num_new = options["max_length"] - (lengths[0] or columns)
    if fed + max(num_new, 0) > longest or fed == longest:
        virtual = f", {num_virtual_tokens} of them virtual" if num_virtual_tokens else ""
        raise ValueError(
            f"{fed + max(num_new, 0)} tokens were asked for, of which the prompt is {fed}{virtual}: this model has "
            f"room for {longest}, the start token and {num_positions} pixels"
        )
    return num_new
