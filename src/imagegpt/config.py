"""The architecture of an ImageGPT: the fields and defaults of transformers' `ImageGPTConfig`, plus five of our own.

Each library reads the other's `config.json` if both compute the same model. A model that transformers' ImageGPT would
silently compute differently is saved with a `model_type` that transformers does not know (`EXTENDED_MODEL_TYPE`).
"""

import functools
import os
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers.activations import ACT2CLS
from transformers.configuration_utils import PreTrainedConfig

from imagegpt.common import ranges
from imagegpt.common.text import printable, truncate
from imagegpt.files.config_json import check_config_fields, check_pruned_heads, read_config
from imagegpt.files.schemas import prefix_errors
from imagegpt.files.untrusted import check_attention

_RANGES: dict[str, ranges.Range[Any]] = {
    "n_positions": ranges.PIXELS,
    "n_embd": ranges.WIDTH,
    "n_layer": ranges.LAYERS,
    "n_head": ranges.HEADS,
    "n_inner": ranges.INNER_WIDTH,
    "vocab_size": ranges.VOCABULARY,
    "resid_pdrop": ranges.DROPOUT,
    "embd_pdrop": ranges.DROPOUT,
    "attn_pdrop": ranges.DROPOUT,
    "layer_norm_epsilon": ranges.NORM_EPSILON,
    "initializer_range": ranges.WEIGHT_SCALE,
    "pad_token_id": ranges.TOKEN,
    "bos_token_id": ranges.TOKEN,
    "eos_token_id": ranges.TOKEN,
}
_MAY_BE_NONE = ("n_inner", "pad_token_id", "bos_token_id", "eos_token_id")

# From the paper's section on the network architecture and its appendix. The number of heads of XL was never published;
# 16 makes its head width (192) closest to those of the others.
NAMED_SIZES: dict[str, dict[str, int]] = {
    "small": {"n_layer": 24, "n_embd": 512, "n_head": 8, "n_positions": 32 * 32},
    "medium": {"n_layer": 36, "n_embd": 1024, "n_head": 8, "n_positions": 32 * 32},
    "large": {"n_layer": 48, "n_embd": 1536, "n_head": 16, "n_positions": 32 * 32},
    "xl": {"n_layer": 60, "n_embd": 3072, "n_head": 16, "n_positions": 64 * 64},
}

_MAX_MESSAGE_LENGTH = 300  # characters; the validator prints values in full

# Replaces "imagegpt" in the config.json of models that transformers' ImageGPT cannot compute.
EXTENDED_MODEL_TYPE = "imagegpt_extended"


def _checked_number(field: str, value: Any) -> Any:
    """Check the value of a field and convert NumPy numbers to Python's.

    Raises: ValueError if it is outside the range of the field.
    """
    if isinstance(value, list) and (field == "eos_token_id" or field not in _RANGES):
        return [_checked_number(field, one) for one in value]
    if field in _RANGES and not (value is None and field in _MAY_BE_NONE):
        _RANGES[field].check(field, value)
    return ranges.to_python(value)


ConfigClass = TypeVar("ConfigClass", bound=type[PreTrainedConfig])


def _one_sentence(cls: ConfigClass) -> ConfigClass:
    """Make the constructor raise ValueError with one sentence instead of the validator's multi-line report."""
    checked_init = cls.__init__

    @functools.wraps(checked_init)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            checked_init(self, *args, **{name: _checked_number(name, value) for name, value in kwargs.items()})
        except StrictDataclassError as error:
            raise ValueError(truncate(printable(str(error.__cause__ or error)), _MAX_MESSAGE_LENGTH)) from None

    cls.__init__ = init
    return cls


@_one_sentence
@strict
class ImageGPTConfig(PreTrainedConfig):
    """Everything that determines the architecture of a model.

    Args:
        vocab_size: number of input tokens: the colours of the palette, then the start token (sos).
        n_positions: number of pixels in an image, which is also the maximum input length.
        n_embd: width C of the residual stream.
        n_layer: number of blocks.
        n_head: attention heads in a block; must divide `n_embd`.
        n_inner: width of the hidden layer of the MLP; None means 4 * n_embd.
        activation_function: a name from transformers' `ACT2FN`; "quick_gelu" is the paper's x * sigmoid(1.702 x).
        resid_pdrop: dropout on the outputs of attention and MLP, in [0, 1).
        embd_pdrop: dropout on the embeddings, in [0, 1).
        attn_pdrop: dropout on the attention weights, in [0, 1).
        layer_norm_epsilon: added to the mean square in the norm.
        initializer_range: standard deviation of the initial weights.
        scale_attn_weights: divide attention scores by sqrt(head width).
        use_cache: return keys and values by default.
        tie_word_embeddings: not supported; tied weights would make the start token predictable.
        scale_attn_by_inverse_layer_idx: divide the scores of block i by i + 1 as well.
        reorder_and_upcast_attn: compute scores and softmax in float32 for every dtype (eager attention only).
        add_cross_attention: a second attention in each block, over `encoder_hidden_states`.
        use_bias: biases in all projections, as in transformers; the model of the paper has none.
        is_causal: pixels attend only to earlier pixels; if False, to all of them (BERT).
        init_scheme: initialisation of the weights, "transformers" or "openai" (see `imagegpt.model.initialization`).
        shift_inputs: the input of the classifier is sos and all pixels but the last, as in pre-training and the paper;
            if False, all pixels, as in transformers.
        pruned_heads: block index -> indices of its pruned attention heads.

    Raises: ValueError, naming the field, if a value is invalid.
    """

    model_type = "imagegpt"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012 - Trainer concatenates it with a list
    attribute_map = {  # noqa: RUF012 - transformers requires a plain dict
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }
    # Styles of `imagegpt.model.tensor_parallel`. Cross-attention, embeddings and norms are replicated.
    base_model_tp_plan = {  # noqa: RUF012
        "h.*.attn.c_attn": "imagegpt_packed_colwise",
        "h.*.attn.c_proj": "imagegpt_rowwise",
        "h.*.mlp.c_fc": "imagegpt_colwise",
        "h.*.mlp.c_proj": "imagegpt_rowwise",
    }

    vocab_size: int = 512 + 1
    n_positions: int = 32 * 32
    n_embd: int = 512
    n_layer: int = 24
    n_head: int = 8
    n_inner: int | None = None
    activation_function: str = "quick_gelu"
    resid_pdrop: float | int = 0.1
    embd_pdrop: float | int = 0.1
    attn_pdrop: float | int = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    use_cache: bool = True
    tie_word_embeddings: bool = False
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    add_cross_attention: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    use_bias: bool = True
    is_causal: bool = True
    init_scheme: Literal["transformers", "openai"] = "transformers"
    shift_inputs: bool = False
    pruned_heads: dict[int, list[int]] | dict[str, list[int]] | None = None

    @classmethod
    def from_size(cls, name: str, **overrides: Any) -> Self:
        """Return the configuration of a model of the paper.

        Args:
            name: "small", "medium", "large" or "xl".
            overrides: values for other fields, or in place of those of the named size: `use_bias=False`.
        Raises: ValueError if the name is unknown.
        """
        if name not in NAMED_SIZES:
            raise ValueError(f"there is no size {name!r}: choose one of {', '.join(NAMED_SIZES)}")
        return cls(**{**NAMED_SIZES[name], **overrides})

    @property
    def num_colors(self) -> int:
        """Number of colours: all tokens but the start token."""
        return self.vocab_size - 1

    @property
    def sos_token_id(self) -> int:
        """ID of the start token: the last row of the token embedding."""
        return self.vocab_size - 1

    @property
    def inner_size(self) -> int:
        """Width of the hidden layer of the MLP."""
        return self.n_inner if self.n_inner is not None else 4 * self.n_embd

    def kept_heads(self, layer_idx: int) -> list[int]:
        """Original indices of the attention heads of block `layer_idx` that were not pruned, ascending."""
        pruned = next((heads for layer, heads in (self.pruned_heads or {}).items() if layer == layer_idx), ())
        return [head for head in range(self.n_head) if head not in pruned]

    @property
    def head(self) -> Literal["pixels", "classes", "none"]:
        """The head of the saved model, according to `architectures`; "pixels" if that is missing."""
        names = self.architectures or ()
        if any(name.endswith("ForImageClassification") for name in names):
            return "classes"
        return "none" if any(name.endswith("Model") for name in names) else "pixels"

    @property
    def is_extended(self) -> bool:
        """Whether transformers' ImageGPT would compute another model: if bidirectional, or a shifted classifier."""
        return not self.is_causal or (self.head == "classes" and self.shift_inputs)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `config.json`; the model type is `EXTENDED_MODEL_TYPE` if `is_extended`."""
        fields = super().to_dict()
        return {**fields, "model_type": EXTENDED_MODEL_TYPE} if self.is_extended else fields

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As in transformers.

        Raises: ValueError, naming the folder or model, if its `config.json` is damaged or invalid.
        """
        name = os.fspath(pretrained_model_name_or_path)
        with prefix_errors(name):
            return super().from_pretrained(name, *args, **kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike[str]) -> dict[str, Any]:
        """Overrides how transformers reads every `config.json`, to limit its size."""
        return cls._decode_special_floats(read_config(Path(json_file)))

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers, but without its warning about the extended model type."""
        fields, unused = super().get_config_dict(*args, **kwargs)
        return _with_own_model_type(fields), unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Build from the content of a `config.json` of either model type.

        Raises: ValueError if it selects an attention implementation that would be downloaded, which only `kwargs` may,
            or has unsupported fields.
        """
        check_attention(config_dict, kwargs)
        check_config_fields(config_dict, cls)
        return super().from_dict(_with_own_model_type(config_dict), **kwargs)

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike) -> Self:
        """Build from the path of a `config.json`."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    def __post_init__(self, **kwargs: Any) -> None:
        if self.pruned_heads is not None:  # JSON has only string keys
            if not all(str(layer).isdecimal() for layer in self.pruned_heads):
                raise ValueError(
                    f"pruned_heads has the keys {', '.join(map(repr, self.pruned_heads))}: give the indices of blocks"
                )
            self.pruned_heads = {int(layer): sorted(heads) for layer, heads in self.pruned_heads.items()}
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Raise ValueError, naming the field, if sizes or options are invalid."""
        for field in _RANGES:
            _checked_number(field, getattr(self, field))
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd is {self.n_embd} and n_head is {self.n_head}: "
                "choose a width that is a multiple of the number of heads"
            )
        if self.tie_word_embeddings:
            raise ValueError(
                "tie_word_embeddings is True, but tied embeddings would make the start token predictable: "
                "leave it False, ImageGPT has a separate output matrix"
            )
        if self.activation_function not in ACT2CLS:
            raise ValueError(
                f"activation_function is {self.activation_function!r}: choose one of {', '.join(sorted(ACT2CLS))}"
            )
        check_pruned_heads(self.pruned_heads or {}, self.n_layer, self.n_head)


def _with_own_model_type(fields: dict[str, Any]) -> dict[str, Any]:
    is_extended = fields.get("model_type") == EXTENDED_MODEL_TYPE
    return {**fields, "model_type": ImageGPTConfig.model_type} if is_extended else fields


class ImageGPTExtendedConfig(ImageGPTConfig):
    """Registered with AutoConfig for the extended model type; loading one returns an `ImageGPTConfig`."""

    model_type = EXTENDED_MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> ImageGPTConfig:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Build an `ImageGPTConfig`."""
        return ImageGPTConfig.from_dict(config_dict, **kwargs)
