"""`generate()`: transformers' own, fitted to images.

What is unusual: the start token has an id and an embedding, but no logit, so that it can never be drawn. transformers
takes the number of logits for the number of tokens in a few places; they are put right here. Whole images are made
where no length is given, and what makes no sense for images is refused in one sentence.

Axes: B images, P positions of the prompt, V colours; the start token has the id V.
"""

import copy
import inspect
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import Cache
from transformers.generation import logits_process
from transformers.generation.configuration_utils import GenerationConfig
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.generation.utils import GenerationMixin

from imagegpt.config import ImageGPTConfig
from imagegpt.model.cache_names import CACHE
from imagegpt.model.generation_options import NO_PAGES, check_options, checked_prompt, num_new_pixels

# Processors that look up scores by the ids of tokens, among which the start token may be.
_BY_TOKEN = (
    logits_process.EncoderNoRepeatNGramLogitsProcessor,
    logits_process.EncoderRepetitionPenaltyLogitsProcessor,
    logits_process.PrefixConstrainedLogitsProcessor,
    logits_process.RepetitionPenaltyLogitsProcessor,  # which skips it by itself since transformers 5.18
    logits_process.SequenceBiasLogitsProcessor,  # bad_words_ids, too
    logits_process.WatermarkLogitsProcessor,
)

# A watermark that hashes the drawn pixel itself tries the 40 most probable ones, which a small palette has not.
_TRIED_BY_WATERMARK = 40


class AtWidth(LogitsProcessor):
    """A logits processor that sees as many scores as it knows tokens, whatever the model has.

    Args:
        processor: what changes the scores.
        width: the number of scores it shall see. Tokens that the scores lack get -inf, and superfluous ones, which are
            the start token's, are cut off; what comes back has the width of what was given.
    """

    def __init__(self, processor: LogitsProcessor, width: int) -> None:
        self.processor, self.width = processor, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) changed by the processor."""
        given = scores.shape[-1]
        changed = self.processor(cast(Any, input_ids), cast(Any, _with_width(scores, self.width)))
        return _with_width(changed, given)


class ImageGPTGenerationMixin(GenerationMixin):
    """transformers' GenerationMixin for a model whose vocabulary has one token more than its logits."""

    config: ImageGPTConfig

    def generate(  # type: ignore[override]
        self, inputs: Tensor | None = None, generation_config: GenerationConfig | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Generate images as transformers does; without a prompt from the start token, and whole images.

        Args:
            inputs: (B, P) prompts: the start token, then pixels; None is one empty image. `inputs_embeds` (B, E, C) may
                stand in their place, or beside them, when they are what the model sees and `inputs` what is returned.
            generation_config: as in transformers; where no length is given, whole images are made.
            args: as in transformers.
            kwargs: as in transformers; a cache may be called `cache` or `past_key_values`.
        Returns: as in transformers; ids are (B, 1 + pixels), with the start token in front.
        Raises: ValueError if more pixels are asked for than the model has positions, if the model is bidirectional, and
            for options that an ImageGPT cannot honour.
        """
        if not self.config.is_causal:
            raise ValueError(
                "this model is bidirectional (is_causal=False): it fills masked pixels and cannot generate"
            )
        device: torch.device = cast(Any, self).device
        names = list(inspect.signature(cast(Any, GenerationMixin).generate).parameters)[3:]  # self and ours go before
        kwargs.update(zip(names, args, strict=False))
        kwargs = {k: v for k, v in kwargs.items() if v is not None or k not in ("input_ids", "inputs_embeds")}
        cache = kwargs.pop("past_key_values" if CACHE == "cache" else "cache", None)  # transformers would warn
        if cache is not None:
            if kwargs.get(CACHE) is not None:
                raise ValueError("cache and past_key_values were both given: they are one argument, drop either")
            kwargs[CACHE] = cache
        if inputs is None and "input_ids" not in kwargs and "inputs_embeds" not in kwargs:
            inputs = torch.full((1, 1), self.config.sos_token_id, device=device)
        config = copy.deepcopy(generation_config)
        given = {} if config is None else config.to_diff_dict()
        options = {**self.generation_config.to_diff_dict(), **given, **kwargs}
        num_virtual_tokens = self._num_virtual_tokens()
        check_options(options, self.config, device.type, num_virtual_tokens)
        ids, embeds = checked_prompt(inputs, options, self.config.n_embd)
        if ids is not None and embeds is not None and ids.shape[1] not in (0, embeds.shape[1]):
            # transformers takes mask and positions from the ids; the model sees the embeddings.
            kwargs.setdefault("attention_mask", torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device))
        num_new = num_new_pixels(ids, embeds, options, self.config.n_positions, num_virtual_tokens)
        if options.get("max_new_tokens") is None and options.get("max_length") is None:
            if config is None:
                kwargs["max_new_tokens"] = num_new
            else:
                config.max_new_tokens = num_new
        _repeat_negative_prompts(kwargs, options.get("num_return_sequences"))
        return cast(Any, super()).generate(inputs, config, **kwargs)

    def _num_virtual_tokens(self) -> int:
        """Positions that peft's prompt learning puts in front of the prompt, while it generates with this model."""
        peft_model = getattr(self.prepare_inputs_for_generation, "__self__", self)
        method: Any = getattr(peft_model, "active_peft_config", None)  # peft lends its own method
        return method.num_virtual_tokens if getattr(method, "is_prompt_learning", False) else 0

    @wraps(cast(Any, GenerationMixin).prepare_inputs_for_generation)  # transformers looks at the signature
    def prepare_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Arrange the inputs of a step as transformers does.

        The cache is called `past_key_values` whatever version is installed: peft 0.21 looks for it under this name.
        Assisted decoding may guess on past the last pixel, whose guesses are thrown away; until then they stand at the
        last position, for want of a better one.
        """
        arranged = cast(Any, super()).prepare_inputs_for_generation(*args, **kwargs)
        if "cache" in arranged:
            arranged["past_key_values"] = arranged.pop("cache")
        if arranged.get("position_ids") is not None:
            arranged["position_ids"] = arranged["position_ids"].clamp(max=self.config.n_positions - 1)
        return arranged

    def _get_logits_processor(self, generation_config: GenerationConfig, *args: Any, **kwargs: Any) -> Any:
        """The processors of these options, each of which sees the scores of the tokens it knows."""
        # An assistant is handed the processors of the model that it assists.
        custom = [p.processor if isinstance(p, AtWidth) else p for p in kwargs.get("logits_processor") or ()]
        if custom:
            kwargs["logits_processor"] = LogitsProcessorList(custom)
        processors = cast(Any, super())._get_logits_processor(generation_config, *args, **kwargs)
        for i, processor in enumerate(processors):
            if isinstance(processor, _BY_TOKEN):
                least = _TRIED_BY_WATERMARK if isinstance(processor, logits_process.WatermarkLogitsProcessor) else 0
                processors[i] = AtWidth(processor, max(self.config.vocab_size, least))
            elif generation_config.prompt_lookup_num_tokens is not None and any(processor is p for p in custom):
                # Prompt lookup asks with scores of all tokens which of them may not be drawn.
                processors[i] = AtWidth(processor, self.config.num_colors)
        return processors

    def _expand_inputs_for_generation(self, *args: Any, head_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """Repeat the inputs for beams and samples as transformers does; a head mask has no images to repeat."""
        ids, expanded = cast(Any, super())._expand_inputs_for_generation(*args, **kwargs)
        return ids, expanded if head_mask is None else {**expanded, "head_mask": head_mask}

    def compute_transition_scores(
        self,
        sequences: Tensor,
        scores: tuple[Tensor, ...],
        beam_indices: Tensor | None = None,
        normalize_logits: bool = False,
    ) -> Tensor:
        """The scores of the pixels that were drawn, (B, pixels); arguments as in transformers.

        transformers finds them in the flattened scores of all images, counting `vocab_size` an image, one too many.
        """
        widened = tuple(_with_width(step, self.config.vocab_size) for step in scores)
        return cast(Any, super()).compute_transition_scores(sequences, widened, beam_indices, normalize_logits)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refused, and with it `generate_batch`: its pages are for texts; images of a batch all have one length."""
        raise ValueError(f"continuous batching was asked for: {NO_PAGES} to generate(), and a batch of prompts")

    @staticmethod
    def _reorder_cache(past_key_values: Any, beam_idx: Tensor) -> Any:
        """Put the cached images in the order of the beams: image i becomes what image beam_idx[i] was."""
        if isinstance(past_key_values, Cache):
            past_key_values.reorder_cache(cast(torch.LongTensor, beam_idx))
            return past_key_values
        return tuple(
            tuple(states.index_select(0, beam_idx.to(states.device)) for states in layer) for layer in past_key_values
        )


def _with_width(scores: Tensor, width: int) -> Tensor:
    """Scores (..., V) with `width` entries: cut off, or lengthened by -inf."""
    missing = width - scores.shape[-1]
    return scores if missing == 0 else functional.pad(scores, (0, missing), value=-torch.inf)


def _repeat_negative_prompts(kwargs: dict[str, Any], num_return_sequences: int | None) -> None:
    """Repeat negative prompts, one an image, as transformers repeats the prompts, in place."""
    for name in ("negative_prompt_ids", "negative_prompt_attention_mask"):
        if kwargs.get(name) is not None and (num_return_sequences or 1) > 1:
            kwargs[name] = kwargs[name].repeat_interleave(num_return_sequences, 0)
