"""Validation of `generate()`'s arguments before the first step: the prompt, the number of pixels and the options.

Every function raises ValueError with one sentence. `options` are the merged options of one call: the model's generation
config, overridden by the caller's, overridden by the arguments.

Axes: B images, P positions of the prompt, E positions of `inputs_embeds`, S cached and new positions, C channels.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.generation.configuration_utils import SynthIDTextWatermarkingConfig

from imagegpt.config import ImageGPTConfig
from imagegpt.model.cache import CACHE_ARGUMENT, num_cached_positions
from imagegpt.model.input_checks import check_embeddings

NO_PAGED_CACHE = 'continuous batching is for texts of unknown length: give cache_implementation="dynamic" or "static"'
_NO_TEXT = "pixels are not text: to stop early, give eos_token_id or stopping_criteria"

# Arguments and options of `generate` that ImageGPT does not support.
_UNSUPPORTED = {
    "pixel_values": "this model reads colour ids: give the start token and the processor's input_ids",
    "stop_strings": _NO_TEXT,
    "token_healing": _NO_TEXT,
    "tokenizer": _NO_TEXT,
    "assistant_tokenizer": _NO_TEXT,
    "use_mtp": "this model has no multi-token prediction heads: give an assistant_model",
    "speculation_type": "ImageGPT has no drafting heads: give an assistant_model alone",
}

# Ways of generating that discard pixels after the logits processors have seen them.
_DISCARDING = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")


def check_options(options: dict[str, Any], config: ImageGPTConfig, device: str, num_virtual_tokens: int) -> None:
    """Check that the model supports all options.

    Args:
        device: the type of the model's device.
        num_virtual_tokens: number of tokens that peft prepends to the prompt.
    """
    for name, reason in _UNSUPPORTED.items():
        value = options.get(name)
        if value is not None and value is not False:
            raise ValueError(f"{name} was given: {reason}")
    if options.get("prefill_chunk_size") is not None and options.get("inputs_embeds") is not None:
        raise ValueError("prefill_chunk_size was given with inputs_embeds: only ids are read in chunks, drop either")
    _check_cache_implementation(options.get("cache_implementation"), device, num_virtual_tokens)
    _check_stateful_processors(options)
    _check_forced_colors(options, config.num_colors)
    _check_assistant(options.get("assistant_model"), config)


def _check_cache_implementation(kind: Any, device: str, num_virtual_tokens: int) -> None:
    if kind == "paged":
        raise ValueError(f'cache_implementation="paged" was given: {NO_PAGED_CACHE}')
    if isinstance(kind, str) and kind.startswith("offloaded") and device == "cpu":
        raise ValueError(
            f'cache_implementation="{kind}" was given for a model on the CPU, which has nowhere to offload to: '
            f'give "{"static" if "static" in kind else "dynamic"}"'
        )
    if num_virtual_tokens and isinstance(kind, str) and kind not in ("dynamic", "offloaded"):
        raise ValueError(
            f'cache_implementation="{kind}" was given with {num_virtual_tokens} virtual tokens of peft, for which '
            'transformers leaves no room in it: give "dynamic"'
        )


def _check_stateful_processors(options: dict[str, Any]) -> None:
    """Refuse logits processors that keep state together with beams or drafts.

    Guidance has its own cache, and SynthID keeps the last pixels. transformers does not notify them when it reorders
    beams or discards drafts.
    """
    modes = [name for name in _DISCARDING if options.get(name) is not None]
    modes += ["num_beams"] if (options.get("num_beams") or 1) > 1 else []
    stateful = ["guidance_scale"] if options.get("guidance_scale") not in (None, 1) else []
    if isinstance(options.get("watermarking_config"), SynthIDTextWatermarkingConfig):
        stateful.append("the watermarking_config of SynthID")
    if stateful and modes:
        raise ValueError(
            f"{stateful[0]} was given with {modes[0]}: it keeps state of all pixels it has seen and cannot roll back, "
            "drop either"
        )


def _check_forced_colors(options: dict[str, Any], num_colors: int) -> None:
    names = ["forced_bos_token_id", "forced_eos_token_id"]
    if options.get("exponential_decay_length_penalty") is not None:
        names.append("eos_token_id")
        if options.get("eos_token_id") is None:
            raise ValueError("exponential_decay_length_penalty was given without eos_token_id: give both")
    for name in names:
        for color in torch.as_tensor([] if options.get(name) is None else options[name]).flatten().tolist():
            if not 0 <= color < num_colors:
                raise ValueError(f"{name} is {color}: this model has colours 0 to {num_colors - 1}")


def _check_assistant(assistant: Any, config: ImageGPTConfig) -> None:
    """Refuse an assistant with another vocabulary, or with fewer positions."""
    assistant_config = getattr(assistant, "config", None)
    for name in ("vocab_size", "n_positions"):
        value, required = getattr(assistant_config, name, None), getattr(config, name)
        if value is not None and (value < required or (name == "vocab_size" and value != required)):
            raise ValueError(
                f"assistant_model has {name}={value}, this model {required}: give one for the same palette and size"
            )


def validate_prompt(inputs: Tensor | None, options: dict[str, Any], width: int) -> tuple[Tensor | None, Tensor | None]:
    """Check the prompt and return its ids (B, P) and embeddings (B, E, C), of which one may be None.

    Args:
        inputs: the first argument of `generate`; may be given as `input_ids` in the options instead.
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
                "no prompt"
            )
    if embeds is not None:
        check_embeddings(embeds, "inputs_embeds", width, None if ids is None else ids.shape[0])
    return ids, embeds


def resolve_num_new_pixels(
    ids: Tensor | None, embeds: Tensor | None, options: dict[str, Any], num_positions: int, num_virtual_tokens: int
) -> int:
    """Return the number of pixels to generate: as requested, or as many as the model has positions left.

    Args:
        ids: (B, P), or None.
        embeds: (B, E, C), or None.
        options: of this call; the attention mask (B, S) may be longer than the prompt if a cache holds the rest, and
            its padding takes no positions.
    """
    lengths = [x.shape[1] for x in (ids, embeds) if x is not None]
    columns, padding, mask = max(lengths), 0, options.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.numel():
        columns, padding = max(columns, mask.shape[1]), int((mask == 0).sum(1).min())
    cached = num_cached_positions(options.get(CACHE_ARGUMENT)) or 0
    if cached and columns + num_virtual_tokens <= cached:
        raise ValueError(
            f"the prompt has {columns} positions and the cache holds {cached}: give all ids from the start token on, "
            "or an attention_mask that covers the cache and the new ids"
        )
    prompt_length = columns - padding + num_virtual_tokens
    max_length = num_positions + 1  # the last pixel is sampled, but never an input
    num_new = max_length - prompt_length
    if options.get("max_new_tokens") is not None:
        num_new = options["max_new_tokens"]
    elif options.get("max_length") is not None:
        num_new = options["max_length"] - (lengths[0] or columns)
    if prompt_length + max(num_new, 0) > max_length or prompt_length == max_length:
        virtual = f", {num_virtual_tokens} of them virtual" if num_virtual_tokens else ""
        raise ValueError(
            f"{prompt_length + max(num_new, 0)} tokens were requested, {prompt_length} of them in the prompt{virtual}: "
            f"this model has room for {max_length}, the start token and {num_positions} pixels"
        )
    return num_new
