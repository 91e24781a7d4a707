"""ImageGPT with a head, as transformers models: the generative model and the classifier.

Names, arguments and files are those of transformers. If the behaviour differs from transformers' ImageGPT, the
docstring says so; `docs/differences.md` has the full list.

Axes: B images, T positions, C channels, V colours (the start token, sos, has id V).
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions, SequenceClassifierOutputWithPast
from transformers.utils.generic import ModelOutput, can_return_tuple

from imagegpt.common.precision import at_least_float32
from imagegpt.config import ImageGPTConfig
from imagegpt.model.base import ImageGPTModel
from imagegpt.model.cache import LegacyCache, accept_either_cache_argument, has_cached_positions
from imagegpt.model.generation import ImageGPTGenerationMixin
from imagegpt.model.input_checks import validate_ids
from imagegpt.model.pixel_loss import drop_final_pixel, pixel_loss, pixel_targets, resolve_logits_to_keep
from imagegpt.model.pretrained_model import ImageGPTPreTrainedModel
from imagegpt.model.tracing import can_read_values


class ImageGPTForCausalImageModeling(ImageGPTPreTrainedModel, ImageGPTGenerationMixin):
    """The generative model: for each position, logits over the colours of the next pixel.

    With `is_causal=False` (BERT), the logits are for the position's own pixel.

    Inputs: those of `ImageGPTModel`, and
        labels: (B, T) token ids, -100 to ignore a pixel. A causal model shifts them, so pass `labels=input_ids`. For
            the exact likelihood of whole images, pass the start token and all n_positions pixels as both: the last
            input, which predicts nothing, is dropped and needs no position (transformers runs out of positions).
        logits_to_keep: compute logits and loss for this many of the last positions only (0: all), or for the positions
            in a tensor of indices or booleans.
        kwargs: `shift_labels` (B, T), labels already shifted, used instead of `labels`; `num_items_in_batch`, by which
            the summed loss is divided, for Trainer.
    """

    def __init__(self, config: ImageGPTConfig) -> None:
        super().__init__(config)
        self.transformer = ImageGPTModel(config)
        # No row for the start token: it is never predicted.
        self.lm_head = nn.Linear(config.n_embd, config.num_colors, bias=False)
        # Tells Trainer how many labels of a batch count: all but the first of each image, or all.
        self.loss_type = "ForCausalLM" if config.is_causal else "ForMaskedLM"
        self.post_init()

    @accept_either_cache_argument
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Cache | LegacyCache | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithCrossAttentions:
        """Predict pixels; the class documents the inputs.

        Returns: `loss` in nats per predicted pixel, `logits` (B, T, V), the cache and captured states.
        """
        num_items_in_batch, shift_labels = kwargs.pop("num_items_in_batch", None), kwargs.pop("shift_labels", None)
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "head_mask": head_mask,
            "inputs_embeds": inputs_embeds,
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
            "use_cache": use_cache,
        }
        has_labels = labels is not None or shift_labels is not None
        if has_labels and self.config.is_causal and not has_cached_positions(past_key_values):
            inputs = drop_final_pixel(inputs, self.config.n_positions)
        outputs = self.transformer(**inputs, return_dict=True, **kwargs)
        features, loss = outputs.last_hidden_state, None
        slice_indices = resolve_logits_to_keep(logits_to_keep, features.shape[1])
        logits = self.lm_head(features[:, slice_indices])
        if has_labels:
            shape = (features.shape[0], features.shape[1])
            targets = pixel_targets(labels, shift_labels, shape, slice_indices, is_causal=self.config.is_causal)
            loss = pixel_loss(logits, targets, num_items_in_batch)
        return CausalLMOutputWithCrossAttentions(loss=loss, logits=logits, **_cache_and_states(outputs))


class ImageGPTForImageClassification(ImageGPTPreTrainedModel):
    """A linear classifier on the mean of the final features.

    With `config.shift_inputs` the pixels enter as in pre-training (and the paper): after the start token, without the
    last pixel. By default they enter unshifted, as in transformers, one position early.

    Inputs: those of `ImageGPTModel`, `input_ids` being pixels only, and
        labels: (B,) class indices; (B,) or (B, num_labels) floats for regression (one label, or `config.problem_type`);
            (B, num_labels) zeros and ones in floating point for multi-label classification.
    """

    accepts_loss_kwargs = False  # for Trainer: the loss is a mean over images, divide it over accumulated batches

    def __init__(self, config: ImageGPTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.transformer = ImageGPTModel(config)
        self.score = nn.Linear(config.n_embd, cast(int, config.num_labels), bias=False)
        self.post_init()

    @accept_either_cache_argument
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Cache | LegacyCache | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Classify images; the class documents the inputs.

        Returns: `loss`, `logits` (B, num_labels), the cache and captured states.
        """
        if kwargs.get("shift_labels") is not None:
            raise ValueError("shift_labels was given to a classifier, which has one label per image: give labels (B,)")
        if self.config.shift_inputs:
            if has_cached_positions(past_key_values):
                raise ValueError(
                    "past_key_values was given to a classifier with shift_inputs, which would put the start token into "
                    "the middle of the image: feed whole images"
                )
            input_ids, inputs_embeds = self._shift_inputs(input_ids, inputs_embeds)
            if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
                attention_mask = _shift_right(attention_mask, 1)
        outputs = self.transformer(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        logits = self.score(outputs.last_hidden_state.mean(dim=1))
        loss = None if labels is None else self._label_loss(logits, labels)
        states = _cache_and_states(outputs)
        states.pop("cross_attentions", None)  # this output class has no such field
        return SequenceClassifierOutputWithPast(loss=loss, logits=logits, **states)

    def _shift_inputs(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        if input_ids is not None:
            ids = validate_ids(input_ids, "input_ids", self.config.vocab_size)
            input_ids = _shift_right(ids, self.config.sos_token_id)
        if inputs_embeds is not None:
            sos = self.transformer.wte.weight[self.config.sos_token_id].expand_as(inputs_embeds[:, :1])
            inputs_embeds = torch.cat([sos.to(inputs_embeds.dtype), inputs_embeds[:, :-1]], dim=1)
        return input_ids, inputs_embeds

    def _label_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss for `config.problem_type`, which defaults by the number and dtype of the labels."""
        problem_type = self.config.problem_type
        if problem_type is None and self.num_labels == 1:
            problem_type = "regression"
        elif problem_type is None:
            is_multi_label = labels.is_floating_point()
            problem_type = "multi_label_classification" if is_multi_label else "single_label_classification"
        logits, labels = logits.to(at_least_float32(logits.dtype)), labels.to(logits.device)
        if problem_type == "regression":
            return functional.mse_loss(logits.flatten(), labels.flatten().to(logits.dtype))
        if problem_type == "multi_label_classification":
            return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        labels = labels.flatten().long()
        if can_read_values(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[-1]:
            raise ValueError(
                f"labels range from {int(labels.min())} to {int(labels.max())}: classes are 0 to {logits.shape[-1] - 1}"
            )
        return functional.cross_entropy(logits, labels)


def _shift_right(x: Tensor, first: int) -> Tensor:
    """Insert a first column into (B, T) and drop the last one."""
    return torch.cat([torch.full_like(x[:, :1], first), x[:, :-1]], dim=1)


def _cache_and_states(outputs: ModelOutput) -> dict[str, Any]:
    """Return everything but the features: the cache, hidden states and attentions."""
    return {name: value for name, value in outputs.items() if name != "last_hidden_state"}
