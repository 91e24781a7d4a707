"""`ImageGPTPreTrainedModel`: the base class that connects the models to transformers.

It carries what all models share and none computes: loading and saving, initialisation, pruning and resizing.

Axis: C channels.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.output_capturing import OutputRecorder

from imagegpt.config import ImageGPTConfig
from imagegpt.model.initialization import initialize_module
from imagegpt.model.layers import ImageGPTAttention, ImageGPTBlock
from imagegpt.model.loading_checks import checked_from_pretrained
from imagegpt.model.pruning import prune_heads
from imagegpt.model.resizing import resize_color_embeddings, resize_position_embeddings, round_up_to_multiple
from imagegpt.model.weight_files import STORED_MASKS

if TYPE_CHECKING:
    from imagegpt.model.base import ImageGPTModel


class ImageGPTPreTrainedModel(PreTrainedModel):
    """Base class of the three models: loading, saving, initialisation, resizing, and what transformers may use."""

    config: ImageGPTConfig
    config_class = ImageGPTConfig
    base_model_prefix = "transformer"
    main_input_name = "input_ids"
    input_modalities = ["image"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _no_split_modules = ["ImageGPTBlock"]  # noqa: RUF012 - transformers wants plain lists and dicts
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    # The norms keep their gains in float32 in a half-precision model, see `ImageGPTLayerNorm`.
    _keep_in_fp32_modules_strict = ["ln_1", "ln_2", "ln_f"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [STORED_MASKS]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": ImageGPTBlock,
        "attentions": OutputRecorder(ImageGPTAttention, layer_name=".attn", index=1),
        "cross_attentions": OutputRecorder(ImageGPTAttention, layer_name=".crossattention", index=1),
    }

    @property
    def base_model(self) -> "ImageGPTModel":
        """The model without a head."""
        return cast("ImageGPTModel", super().base_model)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a folder or a model on the hub, as in transformers; `tp_plan` or `distributed_config` shard it.

        Raises: ShapeError if weights have other shapes than the configuration says, unless `ignore_mismatched_sizes`.
        """
        if kwargs.get("tp_plan") is not None or kwargs.get("distributed_config") is not None:
            from imagegpt.model.tensor_parallel import register_parallel_styles  # slow to import, rarely used

            register_parallel_styles()
        return checked_from_pretrained(super().from_pretrained, *args, **kwargs)

    def post_init(self) -> None:
        """Finish construction as in transformers, keeping the cross-attention's norms in float32 as well."""
        if self.config.add_cross_attention:
            self._keep_in_fp32_modules_strict = {*(self._keep_in_fp32_modules_strict or ()), "ln_cross_attn"}
        super().post_init()

    def _init_weights(self, module: nn.Module) -> None:
        initialize_module(module, self.config)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # For custom classes transformers skips modules without weights of their own, so that they do not overwrite
        # loaded weights of their children. Attention and MLP are such modules, but they initialise with
        # `transformers.initialization`, which leaves loaded weights alone.
        super()._initialize_weights(module, is_custom_code=False)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # transformers would search this file for the dispatch, which is in `layers`

    def prune_heads(self, heads_to_prune: Mapping[int, Iterable[int]]) -> None:
        """Remove heads of the self-attention, see `imagegpt.model.pruning.prune_heads`."""
        attentions = {i: cast(ImageGPTBlock, block).attn for i, block in enumerate(self.base_model.h)}
        prune_heads(self.config, attentions, heads_to_prune)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Change the number of input tokens, in place, keeping the start token last.

        Args:
            new_num_tokens: colours + 1; None changes nothing.
            pad_to_multiple_of: add colours until the tokens are a multiple of this; the model may sample them.
            mean_resizing: centre new rows on the mean of the old ones; otherwise on 0, as in a new model.
        Returns: the token embedding.
        Raises: ValueError on fewer than 3 tokens, or a multiple below 1.
        """
        if pad_to_multiple_of is not None:
            requested = self.config.vocab_size if new_num_tokens is None else new_num_tokens
            new_num_tokens = round_up_to_multiple(requested, pad_to_multiple_of)
        if new_num_tokens is not None and new_num_tokens != self.config.vocab_size:
            std, lm_head = self.config.initializer_range, getattr(self, "lm_head", None)
            resize_color_embeddings(self.base_model.wte, lm_head, new_num_tokens, std, around_mean=mean_resizing)
            self.config.vocab_size = new_num_tokens
        return self.base_model.wte

    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Adapt the model to another image size, in place, see `imagegpt.model.resizing`."""
        resize_position_embeddings(self.base_model.wpe, new_num_position_embeddings)
        self.config.n_positions = new_num_position_embeddings

    def get_position_embeddings(self) -> nn.Embedding:
        """The position embedding, (n_positions, C)."""
        return self.base_model.wpe
