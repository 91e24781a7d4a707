"""Fine-tuning few weights: LoRA by the library peft, merged into the model when it is saved.

Source: "LoRA: Low-Rank Adaptation of Large Language Models" (Hu et al., 2021). Each projection x W becomes
x W + 2 x A B, with A (in, rank) and B (rank, out), which is initially zero; W is frozen.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from torch import nn

if TYPE_CHECKING:
    from peft import LoraModel

_PROJECTIONS = ["c_attn", "q_attn", "c_proj", "c_fc"]
_NAME = "default"  # of the adapters in peft
_SCALE = 2  # peft's lora_alpha over the rank


def check_adapters() -> None:
    """Check that peft is installed.

    Raises: ValueError if the library is missing.
    """
    if find_spec("peft") is None:
        raise ValueError("model.lora_rank needs the library peft: pip install 'imagegpt[train]', or leave it at 0")


def add_adapters(transformer: nn.Module, rank: int) -> "LoraModel":
    """Add adapters to all projections of a transformer, in place, and freeze all its other weights.

    Args:
        transformer: of a model; its `config` is not changed.
        rank: of the adapters.
    Raises: ValueError if the rank is larger than the model's width.
    Returns: peft's handle; its `merge_and_unload` adds the adapters to the weights and removes them.
    """
    from peft import LoraConfig, LoraModel

    width = cast(Any, transformer).config.n_embd
    if rank > width:
        raise ValueError(
            f"model.lora_rank is {rank} and the model is {width} wide: adapters of a larger rank have more "
            f"weights than the projections themselves, choose {width} or less"
        )
    config = LoraConfig(r=rank, lora_alpha=_SCALE * rank, target_modules=_PROJECTIONS, fan_in_fan_out=True)
    return LoraModel(transformer, config, _NAME)


def adapter_rank(transformer: Any) -> int:
    """Return the rank of a transformer's adapters, 0 if it has none."""
    configs = getattr(transformer, "peft_config", None)
    return configs[_NAME].r if configs else 0
