"""The `model` section of a recipe."""

from typing import Annotated, Literal

from pydantic.dataclasses import dataclass

from imagegpt.common import ranges
from imagegpt.common.pydantic_ranges import InRange
from imagegpt.config import NAMED_SIZES, ImageGPTConfig
from imagegpt.training.recipe_fields import STRICT, Dropout


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelRecipe:
    """The architecture. The data determine the numbers of colours and pixels.

    Args:
        size: one of the paper's, instead of `n_layer`, `n_embd` and `n_head`.
        n_layer: number of blocks.
        n_embd: width.
        n_head: attention heads.
        pretrained: a model to start from (name or folder), instead of all of the above.
        change_attention: start from a causal model although the objective needs a bidirectional one, or the other way
            round. Without it such a model is refused, because its weights were trained for the other kind.
        shift_inputs: whether a causal classifier reads the start token and all pixels but the last, as in pre-training
            (the paper); transformers cannot load such a model. False reads all pixels, as transformers does.
        lora_rank: of adapters (by peft) to train instead of a pretrained model's weights; 0 trains the weights.
        resid_pdrop: dropout on the residual stream; the paper has no dropout.
        embd_pdrop: dropout on the embeddings.
        attn_pdrop: dropout on the attention weights.
        use_bias: biases in the projections, as transformers needs them; the paper has none.
        init_scheme: of the weights; with "openai" the initial loss is exactly ln V.
        embedding_init: "random" as in the paper, or "sinusoidal" in colour, row and column
            (`imagegpt.model.sinusoidal_init`), which needs far fewer images.
    """

    size: str | None = None
    n_layer: Annotated[int, InRange(ranges.LAYERS)] | None = None
    n_embd: Annotated[int, InRange(ranges.WIDTH)] | None = None
    n_head: Annotated[int, InRange(ranges.HEADS)] | None = None
    pretrained: str | None = None
    change_attention: bool = False
    shift_inputs: bool = False
    lora_rank: Annotated[int, InRange(ranges.LORA_RANK_OR_NONE)] = 0
    resid_pdrop: Dropout = 0.0
    embd_pdrop: Dropout = 0.0
    attn_pdrop: Dropout = 0.0
    use_bias: bool = False
    init_scheme: Literal["openai", "transformers"] = "openai"
    embedding_init: Literal["random", "sinusoidal"] = "random"

    def __post_init__(self) -> None:
        shape = {name: getattr(self, name) for name in ("n_layer", "n_embd", "n_head")}
        given = [name for name, value in shape.items() if value is not None]
        if self.pretrained is not None and (self.size is not None or given):
            other = "size" if self.size is not None else given[0]
            raise ValueError(
                f"model.pretrained and model.{other} were both given: a pretrained model has its own shape, drop one"
            )
        if self.pretrained is not None:
            if self.embedding_init != "random":
                raise ValueError(
                    f"model.pretrained and model.embedding_init = {self.embedding_init!r} were both given: a "
                    "pretrained model has its embeddings, drop one"
                )
            return
        if self.change_attention:
            raise ValueError(
                "model.change_attention is true and model.pretrained is missing: it only applies to pretrained "
                "models, give one or drop it"
            )
        if self.lora_rank:
            raise ValueError(
                f"model.lora_rank is {self.lora_rank} and model.pretrained is missing: adapters need a pretrained "
                "model, give one or drop the rank"
            )
        if self.size is not None and given:
            raise ValueError(f"model.size and model.{given[0]} were both given: give the size, or the numbers")
        if self.size is None and len(given) < len(shape):
            missing = next(name for name in shape if name not in given)
            raise ValueError(f"model.{missing} is missing: give n_layer, n_embd and n_head, or a size")
        if self.size is not None and self.size not in NAMED_SIZES:
            raise ValueError(f"model.size is {self.size!r}: choose one of {', '.join(NAMED_SIZES)}")
        if self.n_embd is not None and self.n_head is not None and self.n_embd % self.n_head:
            raise ValueError(
                f"model.n_embd is {self.n_embd}, which model.n_head = {self.n_head} does not divide: "
                "choose a width that is a multiple of the number of heads"
            )

    def config(self, *, num_colors: int, num_pixels: int, is_causal: bool) -> ImageGPTConfig:
        """Return the configuration of a new model for images of this size and number of colours."""
        assert self.pretrained is None, "a pretrained model has its own configuration"
        shared = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "use_bias", "init_scheme")
        options = {name: getattr(self, name) for name in shared}
        own = {"n_layer": self.n_layer, "n_embd": self.n_embd, "n_head": self.n_head}
        shape = own if self.size is None else {name: NAMED_SIZES[self.size][name] for name in own}
        return ImageGPTConfig(
            vocab_size=num_colors + 1, n_positions=num_pixels, is_causal=is_causal, **shape, **options
        )
