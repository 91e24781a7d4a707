"""ImageGPT's two heads, as transformers models: the generative model and the classifier.

Names, arguments and files are those of transformers. Where the behaviour differs from its own ImageGPT, the docstring
says so; `docs/differences.md` lists it all.

Axes: B images, T positions, C channels, V colours (the start token, sos, has id V).
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions, SequenceClassifierOutputWithPast
from transformers.utils.generic import can_return_tuple

from imagegpt.common.precision import at_least_float32
from imagegpt.config import ImageGPTConfig
from imagegpt.model import input_checks as door
from imagegpt.model.base import ImageGPTModel, ImageGPTPreTrainedModel, LegacyCache
from imagegpt.model.cache_names import CACHE, takes_either_name
from imagegpt.model.generation import ImageGPTGenerationMixin
from imagegpt.model.pixel_loss import kept_positions, pixel_loss, pixel_targets, up_to
from imagegpt.model.tracing import has_values

__all__ = [
    "ImageGPTForCausalImageModeling",
    "ImageGPTForImageClassification",
    "ImageGPTModel",
    "ImageGPTPreTrainedModel",
]


class ImageGPTForCausalImageModeling(ImageGPTPreTrainedModel, ImageGPTGenerationMixin):
    """The generative model: for each position, logits over the colours of the next pixel.

    With `is_causal=False` (BERT) the logits are for the position's own pixel.
    """

    def __init__(self, config: ImageGPTConfig) -> None:
        super().__init__(config)
        self.transformer = ImageGPTModel(config)
        # No row for the start token: it can never be drawn.
        self.lm_head = nn.Linear(config.n_embd, config.num_colors, bias=False)
        # By this Trainer knows how many labels of a batch count: all but the first of each image, or all.
        self.loss_type = "ForCausalLM" if config.is_causal else "ForMaskedLM"
        self.post_init()

    @takes_either_name
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
        """Predict pixels; arguments as in `ImageGPTModel.forward`, and:

        Args:
            labels: (B, T) token ids, -100 where there is nothing to predict. They are shifted here, so that
                `labels=input_ids` is right; a bidirectional model's are not. For the exact likelihood of whole images
                give the start token and all n_positions pixels as both: the last input, which predicts nothing, is
                dropped, so that it needs no position (transformers runs out of positions).
            logits_to_keep: logits, and the loss, of the last so many positions only (0: all), or of those of a tensor
                of indices or of booleans.
            kwargs: `num_items_in_batch`, by which Trainer wants the summed loss divided; `shift_labels` (B, T), labels
                that are shifted already and count instead of `labels`; and what the model takes.
        Returns: `loss` in nats per predicted pixel, `logits` (B, T, V), the cache and the recorded outputs.
        """
        num_items_in_batch, shift_labels = (kwargs.pop(name, None) for name in ("num_items_in_batch", "shift_labels"))
        is_scored = labels is not None or shift_labels is not None
        if is_scored and self.config.is_causal and not door.is_filled(past_key_values):
            longest = self.config.n_positions
            input_ids, inputs_embeds, token_type_ids, position_ids = (
                up_to(longest, x) for x in (input_ids, inputs_embeds, token_type_ids, position_ids)
            )
            attention_mask = up_to(longest, attention_mask, -1)
            if attention_mask is not None and attention_mask.ndim == 4:
                attention_mask = up_to(longest, attention_mask, -2)
        outputs = self.transformer(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            use_cache=use_cache,
            return_dict=True,  # whatever the configuration says: the head reads it by name
            **kwargs,
        )
        features = outputs.last_hidden_state
        kept = kept_positions(logits_to_keep, features.shape[1])
        logits, loss = self.lm_head(features[:, kept]), None
        if is_scored:
            labels, shift_labels = (
                x if x is None else door.checked_labels(x, len(features), name)
                for name, x in (("labels", labels), ("shift_labels", shift_labels))
            )
            targets = pixel_targets(labels, shift_labels, features.shape[1], kept, is_causal=self.config.is_causal)
            loss = pixel_loss(logits, targets, num_items_in_batch)
        return CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=logits,
            **{CACHE: getattr(outputs, CACHE)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )


class ImageGPTForImageClassification(ImageGPTPreTrainedModel):
    """A linear classifier on the mean of the final features.

    With `config.shift_inputs` pixels enter as in pre-training, the start token first and the last pixel dropped (the
    paper); without, as they come (transformers, whose pixels sit one position early).
    """

    accepts_loss_kwargs = False  # Trainer: the loss is a mean over the images, do divide it over accumulated batches

    def __init__(self, config: ImageGPTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.transformer = ImageGPTModel(config)
        self.score = nn.Linear(config.n_embd, cast(int, config.num_labels), bias=False)
        self.post_init()

    @takes_either_name
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
        """Classify images; arguments as in `ImageGPTModel.forward`, `input_ids` being pixels only, and:

        Args:
            labels: (B,) class indices; (B,) or (B, num_labels) numbers for a regression (one label, or
                `config.problem_type`); (B, num_labels) zeros and ones in floating point for several labels at once.
        Returns: `loss`, `logits` (B, num_labels), the cache and the recorded outputs.
        """
        if kwargs.get("shift_labels") is not None:
            raise ValueError("shift_labels was given to a classifier, which has one label an image: give labels (B,)")
        if self.config.shift_inputs:
            if door.is_filled(past_key_values):
                raise ValueError(
                    "past_key_values was given to a classifier with shift_inputs, which would put the start token into "
                    "the middle of the image: feed whole images"
                )
            input_ids, inputs_embeds = self._shift(input_ids, inputs_embeds)
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
        return SequenceClassifierOutputWithPast(
            loss=None if labels is None else self._label_loss(logits, labels),
            logits=logits,
            **{CACHE: getattr(outputs, CACHE)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _shift(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if input_ids is not None:
            ids = door.checked_ids(input_ids, "input_ids", self.config.vocab_size)
            input_ids = _shift_right(ids, self.config.sos_token_id)
        if inputs_embeds is not None:
            sos = self.transformer.wte.weight[self.config.sos_token_id].expand_as(inputs_embeds[:, :1])
            inputs_embeds = torch.cat([sos.to(inputs_embeds.dtype), inputs_embeds[:, :-1]], dim=1)
        return input_ids, inputs_embeds

    def _label_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of the problem: `config.problem_type`, or what number and kind of labels suggest."""
        whole_numbers = not labels.is_floating_point()
        kind = self.config.problem_type
        if kind is None and self.num_labels == 1:
            kind = "regression"
        elif kind is None:
            kind = "single_label_classification" if whole_numbers else "multi_label_classification"
        logits, labels = logits.to(at_least_float32(logits.dtype)), labels.to(logits.device)
        if kind == "regression":
            return functional.mse_loss(logits.flatten(), labels.flatten().to(logits.dtype))
        if kind == "multi_label_classification":
            return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        labels = labels.flatten().long()
        if has_values(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[-1]:
            raise ValueError(
                f"labels run from {int(labels.min())} to {int(labels.max())}: classes are 0 to {logits.shape[-1] - 1}"
            )
        return functional.cross_entropy(logits, labels)


def _shift_right(x: Tensor, first: int) -> Tensor:
    """(B, T) with `first` put in front and the last column dropped."""
    return torch.cat([torch.full_like(x[:, :1], first), x[:, :-1]], dim=1)
