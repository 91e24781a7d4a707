"""`generate()`: transformers' generation, adapted to images.

Unusual: the start token has an id and an embedding but no logit, so it can never be sampled. transformers assumes in a
few places that there are as many logits as tokens; the mixin below corrects that. If no length is given, it generates
whole images. Options that make no sense for images are errors.

Axes: B images, P positions of the prompt, E positions of `inputs_embeds`, C channels, V colours; the start token has id
V.
"""

import copy
import inspect
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers.generation import logits_process
from transformers.generation.configuration_utils import GenerationConfig
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.generation.utils import GenerationMixin

from imagegpt.config import ImageGPTConfig
from imagegpt.model.cache import CACHE_ARGUMENT
from imagegpt.model.generation_options import NO_PAGED_CACHE, check_options, resolve_num_new_pixels, validate_prompt

# Processors that index scores by token id, possibly by that of the start token.
_INDEXED_BY_TOKEN = (
    logits_process.EncoderNoRepeatNGramLogitsProcessor,
    logits_process.EncoderRepetitionPenaltyLogitsProcessor,
    logits_process.PrefixConstrainedLogitsProcessor,
    logits_process.RepetitionPenaltyLogitsProcessor,  # handles it itself since transformers 5.18
    logits_process.SequenceBiasLogitsProcessor,  # also bad_words_ids
    logits_process.WatermarkLogitsProcessor,
)

# A self-hashing watermark needs the 40 most probable tokens; a small palette has fewer.
_MIN_WATERMARK_SCORES = 40


class FixedWidthLogitsProcessor(LogitsProcessor):
    """A logits processor applied to scores of a fixed number of tokens.

    Args:
        width: the number of scores it expects. Missing scores are padded with -inf, and superfluous ones (the start
            token's) cut off; the output has the width of the input.
    """

    def __init__(self, processor: LogitsProcessor, width: int) -> None:
        self.processor, self.width = processor, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the processed scores, (B, V)."""
        processed = self.processor(cast(Any, input_ids), cast(Any, _pad_or_cut(scores, self.width)))
        return _pad_or_cut(processed, scores.shape[-1])


class ImageGPTGenerationMixin(GenerationMixin):
    """transformers' `GenerationMixin` for a model with one token more than it has logits."""

    config: ImageGPTConfig

    def generate(  # type: ignore[override]
        self, inputs: Tensor | None = None, generation_config: GenerationConfig | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Generate images as transformers does; by default whole images, starting from the start token.

        Args:
            inputs: (B, P) prompts: the start token, then pixels; None is the start token alone. Instead you may pass
                `inputs_embeds` (B, E, C), or both: the model then reads the embeddings, and `inputs` is returned.
            generation_config: as in transformers; without a length, whole images are generated.
            kwargs: as in transformers; the cache may be named `cache` or `past_key_values`.
        Returns: as in transformers; ids are (B, 1 + pixels), the start token first.
        Raises: ValueError for more pixels than the model has positions, for a bidirectional model, and for options
            ImageGPT does not support.
        """
        if not self.config.is_causal:
            raise ValueError(
                "this model is bidirectional (is_causal=False): it fills masked pixels and cannot generate"
            )
        device: torch.device = cast(Any, self).device
        # The first three are self and the two above.
        names = list(inspect.signature(cast(Any, GenerationMixin).generate).parameters)[3:]
        kwargs.update(zip(names, args, strict=False))
        kwargs = {k: v for k, v in kwargs.items() if v is not None or k not in ("input_ids", "inputs_embeds")}
        cache = kwargs.pop("past_key_values" if CACHE_ARGUMENT == "cache" else "cache", None)  # transformers would warn
        if cache is not None:
            if kwargs.get(CACHE_ARGUMENT) is not None:
                raise ValueError("cache and past_key_values were both given: they are one argument, drop either")
            kwargs[CACHE_ARGUMENT] = cache
        if inputs is None and "input_ids" not in kwargs and "inputs_embeds" not in kwargs:
            inputs = torch.full((1, 1), self.config.sos_token_id, device=device)
        config = copy.deepcopy(generation_config)
        given = {} if config is None else config.to_diff_dict()
        options = {**self.generation_config.to_diff_dict(), **given, **kwargs}
        num_virtual_tokens = self._num_virtual_tokens()
        check_options(options, self.config, device.type, num_virtual_tokens)
        ids, embeds = validate_prompt(inputs, options, self.config.n_embd)
        if ids is not None and embeds is not None and ids.shape[1] not in (0, embeds.shape[1]):
            # transformers derives mask and positions from the ids, but the model reads the embeddings.
            kwargs.setdefault("attention_mask", torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device))
        num_new = resolve_num_new_pixels(ids, embeds, options, self.config.n_positions, num_virtual_tokens)
        if options.get("max_new_tokens") is None and options.get("max_length") is None:
            if config is None:
                kwargs["max_new_tokens"] = num_new
            else:
                config.max_new_tokens = num_new
        _repeat_negative_prompts(kwargs, options.get("num_return_sequences"))
        return cast(Any, super()).generate(inputs, config, **kwargs)

    def _num_virtual_tokens(self) -> int:
        """Return the number of virtual tokens that peft's prompt learning prepends to the prompt."""
        peft_model = getattr(self.prepare_inputs_for_generation, "__self__", self)  # peft replaces this method
        method: Any = getattr(peft_model, "active_peft_config", None)
        return method.num_virtual_tokens if getattr(method, "is_prompt_learning", False) else 0

    @wraps(cast(Any, GenerationMixin).prepare_inputs_for_generation)  # transformers inspects the signature
    def prepare_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Prepare the inputs of a step as transformers does.

        The cache is named `past_key_values` with every version of transformers, because peft 0.21 expects that name.
        Assisted decoding may draft beyond the last pixel and discards those drafts later; until then they get the last
        position.
        """
        inputs = cast(Any, super()).prepare_inputs_for_generation(*args, **kwargs)
        if "cache" in inputs:
            inputs["past_key_values"] = inputs.pop("cache")
        if inputs.get("position_ids") is not None:
            inputs["position_ids"] = inputs["position_ids"].clamp(max=self.config.n_positions - 1)
        return inputs

    def _get_logits_processor(self, generation_config: GenerationConfig, *args: Any, **kwargs: Any) -> Any:
        """Create the logits processors, each wrapped to receive the number of scores it expects."""
        # An assistant receives the wrapped processors of the model it assists.
        custom = [
            processor.processor if isinstance(processor, FixedWidthLogitsProcessor) else processor
            for processor in kwargs.get("logits_processor") or ()
        ]
        if custom:
            kwargs["logits_processor"] = LogitsProcessorList(custom)
        processors = cast(Any, super())._get_logits_processor(generation_config, *args, **kwargs)
        for i, processor in enumerate(processors):
            if isinstance(processor, _INDEXED_BY_TOKEN):
                is_watermark = isinstance(processor, logits_process.WatermarkLogitsProcessor)
                min_width = _MIN_WATERMARK_SCORES if is_watermark else 0
                processors[i] = FixedWidthLogitsProcessor(processor, max(self.config.vocab_size, min_width))
            elif generation_config.prompt_lookup_num_tokens is not None and any(processor is p for p in custom):
                # Prompt lookup calls it with scores of all tokens, to find those it forbids.
                processors[i] = FixedWidthLogitsProcessor(processor, self.config.num_colors)
        return processors

    def _expand_inputs_for_generation(self, *args: Any, head_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """Repeat the inputs for beams and samples as transformers does, except for the head mask: it has no batch."""
        ids, expanded = cast(Any, super())._expand_inputs_for_generation(*args, **kwargs)
        return ids, expanded if head_mask is None else {**expanded, "head_mask": head_mask}

    def compute_transition_scores(
        self,
        sequences: Tensor,
        scores: tuple[Tensor, ...],
        beam_indices: Tensor | None = None,
        normalize_logits: bool = False,
    ) -> Tensor:
        """Return the scores of the sampled pixels, (B, pixels); arguments as in transformers.

        transformers looks them up in the flattened scores of all images, assuming `vocab_size` scores per image.
        """
        padded = tuple(_pad_or_cut(step, self.config.vocab_size) for step in scores)
        return cast(Any, super()).compute_transition_scores(sequences, padded, beam_indices, normalize_logits)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse continuous batching, and with it `generate_batch`: all images of a batch have the same length."""
        raise ValueError(f"continuous batching was requested: {NO_PAGED_CACHE} to generate(), and a batch of prompts")


def _pad_or_cut(scores: Tensor, width: int) -> Tensor:
    """Return scores (..., width), cut off or padded with -inf."""
    missing = width - scores.shape[-1]
    return scores if missing == 0 else functional.pad(scores, (0, missing), value=-torch.inf)


def _repeat_negative_prompts(kwargs: dict[str, Any], num_return_sequences: int | None) -> None:
    """Repeat negative prompts, one per image, as transformers repeats prompts, in place."""
    for name in ("negative_prompt_ids", "negative_prompt_attention_mask"):
        if kwargs.get(name) is not None and (num_return_sequences or 1) > 1:
            kwargs[name] = kwargs[name].repeat_interleave(num_return_sequences, 0)
