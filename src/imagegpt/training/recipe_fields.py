"""The types of recipe fields, how strictly pydantic checks them, and its errors as one sentence."""

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import ConfigDict, ValidationError

from imagegpt.common import ranges
from imagegpt.common.pydantic_ranges import InRange
from imagegpt.common.text import printable, truncate
from imagegpt.files.schemas import format_validation_error

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)  # unknown keys are errors

Dropout = Annotated[float, InRange(ranges.DROPOUT)]
Probability = Annotated[float, InRange(ranges.PROBABILITY)]
LossWeight = Annotated[float, InRange(ranges.LOSS_WEIGHT)]
BatchSize = Annotated[int, InRange(ranges.BATCH_SIZE)]
Steps = Annotated[int, InRange(ranges.STEPS)]
Decay = Annotated[float, InRange(ranges.EMA_DECAY)]

PrecisionName = Literal["auto", "float32", "bfloat16"]
AttentionName = Literal["kernels", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"]


def describe_validation_error(
    error: ValidationError, what: str, fields: Callable[[str], list[str]], section: str = ""
) -> str:
    """Describe the first error in a recipe.

    Args:
        error: of pydantic.
        what: was validated, for example "a recipe".
        fields: returns the known fields of a section, by its name within what was validated; "" is the whole.
        section: that was validated, if it was not the whole recipe.
    """
    first = error.errors()[0]
    names = [str(name) for name in first["loc"] if not isinstance(name, int)]
    field = truncate(printable(".".join([*([section] if section else []), *names])), 80)
    inner, kind = ".".join(names), first["type"]
    if kind == "unexpected_keyword_argument":
        owner = inner.rpartition(".")[0]
        return f"there is no {field} in a recipe: {owner or what} has {', '.join(fields(owner))}"
    if kind == "missing":
        return f"{field} is missing from the recipe: give it"
    message = str(first.get("ctx", {}).get("error"))
    if kind == "value_error" and not message.startswith("it must"):
        return message  # the checks of a section name its fields; those of a value do not know its field
    reasons = {
        "dataclass_type": f"it must be a section with {', '.join(fields(inner))}",
        "string_type": "it must be text, put it in quotes",
    }
    text = format_validation_error(error, reasons)
    return f"{section}.{text}" if section else text
