"""The types of recipe fields, and how strictly pydantic checks them."""

from typing import Annotated, Literal

from pydantic import ConfigDict

from imagegpt.common import ranges
from imagegpt.common.pydantic_ranges import InRange

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)  # unknown keys are errors

Dropout = Annotated[float, InRange(ranges.DROPOUT)]
Probability = Annotated[float, InRange(ranges.PROBABILITY)]
LossWeight = Annotated[float, InRange(ranges.LOSS_WEIGHT)]
BatchSize = Annotated[int, InRange(ranges.BATCH_SIZE)]
Steps = Annotated[int, InRange(ranges.STEPS)]
Decay = Annotated[float, InRange(ranges.EMA_DECAY)]

PrecisionName = Literal["auto", "float32", "bfloat16"]
AttentionName = Literal["kernels", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"]
